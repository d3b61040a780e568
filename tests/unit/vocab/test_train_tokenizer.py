"""tools/train_tokenizer.py: models and one report, or one clear error and nothing written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.unit.vocab.conftest import CHINESE_DOCUMENTS, english_documents


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[3] / "tools" / "train_tokenizer.py"
    spec = importlib.util.spec_from_file_location("train_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, texts in (
        ("english", english_documents()),
        ("law", [f"{number}{text}" for number in range(8) for text in CHINESE_DOCUMENTS]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "blank.jsonl").write_text(json.dumps({"text": "\u3000\u3000"}) + "\n" + json.dumps({"text": "\u2003"}) + "\n")
    (folder / "terms.txt").write_text("logging\nprogram\n法律\n")
    return folder


def run(tool, files, output, **changed):
    options = {"domain": files / "english.jsonl", "sizes": ["200", "300"], "test-fraction": "0.2", "output": output} | changed
    arguments = []
    for key, value in options.items():
        arguments += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return tool.main(arguments)


def test_models_and_one_report_on_all_of_them(tool, files, tmp_path, base_folder):
    output = tmp_path / "out"
    assert run(tool, files, output, general=files / "law.jsonl", base=base_folder, terms=files / "terms.txt") == 0
    folders = sorted(path.name for path in output.iterdir() if path.is_dir())
    assert folders == ["bpe_200", "bpe_300", "byte_level_200", "byte_level_300", "unigram_200", "unigram_300"]
    report = json.loads((output / "report.json").read_text())
    assert set(report["domain"]) == set(report["general"]) == set(report["terms"]["of"])
    assert next(iter(report["domain"])) == "base"
    assert len(report["domain"]) == 7
    saved = Tokenizer.from_file(str(output / "byte_level_300" / "tokenizer.json"))
    assert saved.get_vocab_size() == 556
    assert "<svg" in (output / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    "wrong",
    [
        ({"domain": "blank.jsonl"}, 3, "none of its 2 records was kept"),
        ({"sizes": ["90000"]}, 3, "at most"),
        ({"sizes": ["200", "200"]}, 2, "each once"),
        ({"sizes": ["-1"]}, 2, "whole numbers from 1 on"),
        ({"terms": "missing.txt"}, 2, "cannot be read"),
        ({"domain": "law.jsonl", "sizes": ["50"], "kinds": ["byte_level"], "normaliser": "nfkc"}, 3, "would rewrite the corpus"),
    ],
)
def test_what_cannot_be_is_one_clear_error_and_nothing_is_written(tool, files, tmp_path, capsys, wrong):
    changed, code, words = wrong
    for key in ("domain", "terms"):
        if key in changed:
            changed = changed | {key: files / changed[key]}
    assert run(tool, files, tmp_path / "out", **changed) == code
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_exists_is_left_alone(tool, files, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert run(tool, files, tmp_path) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
