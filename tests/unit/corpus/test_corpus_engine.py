"""Tasks and engines: the same bytes from any number of tasks and workers, a rerun that goes on, a death that is noticed and named."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cpt.config.schema import (
    CorpusConfig,
    DecontaminateConfig,
    DedupConfig,
    EngineConfig,
    NearDedupConfig,
    ProvenanceConfig,
    SelectConfig,
    SourceConfig,
)
from megatron_cpt.corpus import engine
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.corpus.sources import source_inputs
from megatron_cpt.errors import ConfigError, CptError, DataError
from megatron_cpt.record.manifest import StageResult

SMALL = 0.01  # MB a task: a dozen or two from the text below


def source(path: Path, **changed) -> SourceConfig:
    made = ProvenanceConfig("made here", "2026-11", "by this test")
    return replace(SourceConfig(str(path), "text", "domain", "MIT", made, "en", test_fraction=0.3), **changed)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, SourceConfig]:
    """Two sources: a file that is cut into many ranges, with bad lines and repeated ids, and a folder of small ones with copies."""
    lines = []
    for number in range(900):
        text = f"Paragraph {number % 700} of the long file, about the matter {number * 7919 % 1000}.\u2028It goes on." + " word" * (
            number % 40
        )
        lines.append(json.dumps({"id": number % 500, "text": text}, ensure_ascii=False).encode())
    lines[100], lines[400], lines[401], lines[899] = b"", b'{"text": "\xff"}', b'{"text": "a\\u0000b", "id": 1}', b'{"body": "none"}'
    (tmp_path / "long.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.txt").write_text(f"Note {number % 9}, " + "again and again " * 60)
        rows = "".join(json.dumps({"text": f"row {row} of {number % 5}"}) + "\n" for row in range(40))
        (folder / f"{number:02d}.jsonl.gz").write_bytes(gzip.compress(rows.encode(), mtime=0))
    return {"long": source(tmp_path / "long.jsonl"), "notes": source(folder)}


def build(
    folder: Path, sources: dict[str, SourceConfig], said: list[str] | None = None, more: dict | None = None, **engine_settings
) -> dict[str, bytes]:
    """Build a corpus as the stage does; return its files. `more` are settings beside the engine's."""
    result = StageResult(folder / "corpus", inputs={"sources": source_inputs(sources)})
    result.folder.mkdir(parents=True)
    try:
        say = (said if said is not None else []).append
        settings = CorpusConfig(EngineConfig(**engine_settings), **(more or {}))
        build_corpus(result, sources=sources, say=say, settings=settings)
    except CptError:
        shutil.rmtree(result.folder)
        raise
    files = {path.relative_to(result.folder).as_posix(): path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}
    return files | {"facts": json.dumps(result.facts).encode()}


def num_finished(folder: Path) -> int:
    return len([path for path in (folder / ".corpus.scratch" / "tasks").iterdir() if not path.name.startswith(".")])


def test_any_number_of_tasks_and_workers_gives_the_same_bytes(tmp_path, sources):
    whole = build(tmp_path / "whole", sources, workers=1)
    rejects = [json.loads(line) for line in whole["rejects/long.jsonl"].splitlines()]
    assert [(row["line"], row["reason"]) for row in rejects if row["reason"] != "duplicate"] == [
        (101, "blank_line"), (401, "invalid_utf8"), (900, "missing_text"),
    ]  # fmt: skip
    assert len(whole["long.train.jsonl"].splitlines()) > 300
    for workers, task_mb in ((1, SMALL), (2, SMALL), (8, 0.02)):
        assert build(tmp_path / f"{workers}", sources, workers=workers, task_mb=task_mb) == whole
    assert not (tmp_path / "8" / ".corpus.scratch").exists()


def test_with_every_decision_switched_on_the_bytes_stay_the_same(tmp_path, sources):
    texts = [
        f"The clause {number % 90} of the treaty is about {number * 7919 % 1000} and " + "much else, " * (number % 9)
        for number in range(600)
    ]
    texts += [f"{text} and one word more at its end so that it is nearly the same" for text in texts[:200:7]]
    texts += [f"{text} and one word less at its end so that it is nearly the same" for text in texts[:200:7]]
    (tmp_path / "target.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[::5]))
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"text": texts[3] + texts[4]}) + "\n")
    sources = {**sources, "pool": source(tmp_path / "pool.jsonl")}
    more = {
        "dedup": DedupConfig(near=NearDedupConfig(enabled=True, threshold=0.6)),
        "decontaminate": DecontaminateConfig(texts=[str(tmp_path / "held_out.jsonl")], document_share=0.1),
        "select": SelectConfig(target=[str(tmp_path / "target.jsonl")], pool=["pool", "long"], max_documents=150),
    }
    whole = build(tmp_path / "whole", sources, more=more, workers=1)
    facts = json.loads(whole["facts"])["sources"]
    for reason in ("duplicate", "near_duplicate", "contaminated", "not_selected"):
        assert sum(each["rejected"].get(reason, 0) for each in facts.values()) > 0, reason
    assert build(tmp_path / "many", sources, more=more, workers=2, task_mb=SMALL) == whole


def test_the_place_of_a_bad_byte_is_that_in_the_file_whatever_the_task(tmp_path, sources):
    data = Path(sources["long"].path).read_bytes()
    for name, task_mb in (("one", 64), ("many", SMALL)):
        files = build(tmp_path / name, {"long": sources["long"]}, workers=1, task_mb=task_mb)
        (bad,) = [row for row in map(json.loads, files["rejects/long.jsonl"].splitlines()) if row["reason"] == "invalid_utf8"]
        assert bad["detail"] == f"byte 0xff at byte {data.index(0xFF)} of the file"
        assert data[: data.index(0xFF)].count(b"\n") + 1 == bad["line"]


def test_more_workers_than_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(3)))
    files = build(tmp_path / "out", {"a": source(tmp_path / "a.jsonl", test_fraction=0.0)}, workers=8, task_mb=2e-5)
    assert len(files["a.train.jsonl"].splitlines()) == 3


def test_a_killed_worker_is_noticed_and_named_and_a_rerun_goes_on_to_the_same_bytes(tmp_path, sources, monkeypatch):
    whole = build(tmp_path / "whole", sources, workers=1)
    given: list[int] = []
    killed: list[float] = []
    give = engine.Worker.give

    def give_and_kill(worker, rank):
        given.append(rank)
        if len(given) == 6:
            worker.process.kill()
            killed.append(time.monotonic())
        give(worker, rank)

    monkeypatch.setattr(engine.Worker, "give", give_and_kill)
    with pytest.raises(CptError, match=r"A worker of the corpus died(.|\n)*signal 9(.|\n)*lower corpus.engine.workers") as caught:
        build(tmp_path / "out", sources, workers=2, task_mb=SMALL)
    assert time.monotonic() - killed[0] < 5
    assert "long.jsonl" in str(caught.value)
    assert caught.value.exit_code != 0
    assert not (tmp_path / "out" / "corpus").exists()
    monkeypatch.setattr(engine.Worker, "give", give)
    before, said = num_finished(tmp_path / "out"), []
    assert before >= 3
    assert build(tmp_path / "out", sources, said, workers=2, task_mb=SMALL) == whole
    assert any(line.startswith(f"corpus: {before} of ") and line.endswith("tasks were done before") for line in said)


def test_a_cut_file_of_a_finished_task_is_found_and_the_task_done_anew(tmp_path, sources, monkeypatch):
    whole = build(tmp_path / "whole", sources, workers=1)
    monkeypatch.setattr("megatron_cpt.corpus.build.decide", lambda *_, **__: (_ for _ in ()).throw(CptError("stopped here")))
    with pytest.raises(CptError, match="stopped here"):
        build(tmp_path / "out", sources, workers=1, task_mb=SMALL)
    monkeypatch.undo()
    cut = sorted((tmp_path / "out" / ".corpus.scratch" / "tasks").glob("*/documents.bin"))[3]
    cut.write_bytes(cut.read_bytes()[:-5])
    said: list[str] = []
    assert build(tmp_path / "out", sources, said, workers=1, task_mb=SMALL) == whole
    assert "is incomplete: its file documents.bin is cut. It is done anew." in "\n".join(said)


def test_all_damaged_files_are_named_at_once_and_the_others_stay_done(tmp_path, sources):
    folder = Path(sources["notes"].path)
    for name in ("03.jsonl.gz", "07.jsonl.gz"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-20])
    with pytest.raises(DataError, match="2 problems") as caught:
        build(tmp_path / "out", sources, workers=1, task_mb=SMALL)
    for name in ("03.jsonl.gz", "07.jsonl.gz"):
        assert name in str(caught.value)
    assert "whole records before the damage" in str(caught.value)
    done = num_finished(tmp_path / "out")
    rows = "".join(json.dumps({"text": f"row {row} of 3"}) + "\n" for row in range(40))
    for name in ("03.jsonl.gz", "07.jsonl.gz"):
        (folder / name).write_bytes(gzip.compress(rows.encode(), mtime=0))
    said: list[str] = []
    build(tmp_path / "out", sources, said, workers=1, task_mb=SMALL)
    assert said[0].startswith(f"corpus: {done} of ")


def test_other_settings_or_texts_do_not_take_the_work_of_earlier_ones(tmp_path, sources, monkeypatch):
    monkeypatch.setattr("megatron_cpt.corpus.build.decide", lambda *_, **__: (_ for _ in ()).throw(CptError("stopped here")))
    with pytest.raises(CptError, match="stopped here"):
        build(tmp_path / "out", sources, workers=1)
    monkeypatch.undo()
    changed = {name: replace(each, min_chars=8) for name, each in sources.items()}
    more = {"dedup": DedupConfig(exact=False)}
    assert build(tmp_path / "out", changed, more=more, workers=1) == build(tmp_path / "other", changed, more=more, workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_said_in_one_message(tmp_path, sources, workers):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CptError, match=r"The disk is full(.|\n)*finished tasks stay"):
            build(tmp_path / "out", sources, workers=workers, task_mb=0.05)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("setting", "said"), [({"kind": "dask"}, "local, slurm, ray"), ({"workers": 0}, "1 or more"), ({"task_mb": 0}, "above 0")]
)
def test_a_wrong_engine_is_refused(tmp_path, sources, setting, said):
    with pytest.raises(ConfigError, match=said):
        build(tmp_path / "out", sources, **setting)


def test_nothing_of_the_executors_log_reaches_the_terminal(tmp_path, sources, capfd):
    build(tmp_path / "out", sources, workers=2, task_mb=0.02)
    build(tmp_path / "other", sources, workers=1)
    seen = capfd.readouterr()
    assert (seen.out, seen.err) == ("", "")


@pytest.mark.slow
def test_ray_gives_the_same_bytes_and_names_the_file_of_a_worker_that_dies(tmp_path, sources, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed; it is the extra [ray]")
    whole = build(tmp_path / "whole", sources, workers=1)
    assert build(tmp_path / "out", sources, kind="ray", workers=2, task_mb=0.02) == whole
    assert not ray.is_initialized()
    monkeypatch.setattr("megatron_cpt.corpus.on_ray.do_task", die)
    with pytest.raises(CptError, match=r"A worker of the corpus died(.|\n)*long\.jsonl(.|\n)*finished tasks stay"):
        build(tmp_path / "dead", sources, kind="ray", workers=1)


def die(scratch, rank):
    os.kill(os.getpid(), signal.SIGKILL)


def test_without_ray_its_extra_is_named(tmp_path, sources, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"megatron-cpt\[ray\]"):
        build(tmp_path / "out", sources, kind="ray")
