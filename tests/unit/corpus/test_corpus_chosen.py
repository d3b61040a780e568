"""The corpus stage leaves out what was not chosen, says why, keeps the balance, and comes out the same in any number of tasks."""

from __future__ import annotations

import json
import pydoc_data.topics
from pathlib import Path

import pytest

from megatron_cpt.config.schema import CorpusConfig, EngineConfig, ProvenanceConfig, SelectConfig, SourceConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.record.manifest import StageResult

TOPICS = [text for text in pydoc_data.topics.topics.values() if len(text) > 300]
CODE = [path.read_text() for path in sorted(Path(json.__file__).parent.glob("*.py"))]
CODE_PARTS = [text[start : start + 2000] for text in CODE for start in range(0, len(text), 2000)]
PROSE_PARTS = [text[:2000] for text in TOPICS]


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text, "id": f"{path.stem}-{number}"}) + "\n" for number, text in enumerate(texts)))
    return str(path)


def build(folder, sources, *, seed=3, task_mb=64.0, said=None, fractions=None, **select):
    provenance = ProvenanceConfig("here", "2026-11-29", "made")
    found = {
        name: SourceConfig(
            path=path, role="domain", licence="MIT", provenance=provenance, language="en",
            **({"test_fraction": 0.0} | (fractions or {}).get(name, {})),
        )
        for name, path in sources.items()
    }  # fmt: skip
    result = StageResult(folder)
    folder.mkdir()
    settings = CorpusConfig(engine=EngineConfig(workers=1, task_mb=task_mb), select=SelectConfig(**select))
    build_corpus(result, sources=found, settings=settings, seed=seed, say=(said if said is not None else []).append)
    return result


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_code_is_chosen_from_a_pool_of_code_and_prose_with_reasons_and_balance(tmp_path):
    target = write(tmp_path / "target.jsonl", CODE_PARTS[::4])
    pool = {
        "code": write(tmp_path / "code.jsonl", [part for number, part in enumerate(CODE_PARTS) if number % 4]),
        "prose": write(tmp_path / "prose.jsonl", PROSE_PARTS),
    }
    size = len(CODE_PARTS) // 2
    result = build(tmp_path / "out", pool, target=[target], max_documents=size)
    code, prose = result.facts["sources"]["code"], result.facts["sources"]["prose"]
    assert code["kept"] + prose["kept"] == size
    assert code["kept"] / size > 0.9  # a draw at random would give a quarter or less
    assert len(PROSE_PARTS) > 3 * (code["read"] - 1)
    for name in pool:
        facts = result.facts["sources"][name]
        assert facts["read"] == facts["kept"] + sum(facts["rejected"].values())
        rejects = [row for row in rows(tmp_path / "out" / "rejects" / f"{name}.jsonl") if row["reason"] == "not_selected"]
        assert len(rejects) == facts["rejected"].get("not_selected", 0)
        assert all(row["detail"].startswith("log weight ") for row in rejects)
    assert result.facts["selection"]["chosen_documents"] == size
    assert result.facts["selection"]["pool_documents"] == sum(
        facts["read"] - facts["rejected"].get("duplicate", 0) for facts in (code, prose)
    )


def test_many_small_tasks_choose_the_same_documents_as_one(tmp_path):
    sources = {
        "code": write(tmp_path / "code.jsonl", CODE_PARTS),
        "prose": write(tmp_path / "prose.jsonl", PROSE_PARTS),
    }
    select = {"target": ["code"], "pool": ["code", "prose"], "max_bytes": 60_000}
    build(tmp_path / "one", sources, **select)
    build(tmp_path / "many", sources, task_mb=0.01, **select)
    for name in ("code.train.jsonl", "prose.train.jsonl", "rejects/code.jsonl", "rejects/prose.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    taken = [row["text"] for name in sources for row in rows(tmp_path / "one" / f"{name}.train.jsonl")]
    assert 0 < sum(len(text.encode()) for text in taken) <= 60_000


def test_a_source_that_is_the_target_is_kept_whole_and_its_test_side_decides_nothing(tmp_path):
    sources = {"code": write(tmp_path / "code.jsonl", CODE_PARTS), "prose": write(tmp_path / "prose.jsonl", PROSE_PARTS)}
    result = build(tmp_path / "out", sources, target=["code"], max_documents=5)
    assert "not_selected" not in result.facts["sources"]["code"]["rejected"]
    assert result.facts["sources"]["prose"]["kept"] == 5
    with pytest.raises(DataError, match="target of the selection holds no text"):
        build(tmp_path / "all_test", sources, target=["code"], max_documents=5, fractions={"code": {"test_fraction": 1.0}})


def test_a_size_above_the_pool_takes_all_and_says_so(tmp_path):
    said: list[str] = []
    sources = {"code": write(tmp_path / "code.jsonl", CODE_PARTS[:3]), "prose": write(tmp_path / "prose.jsonl", PROSE_PARTS[:4])}
    result = build(tmp_path / "out", sources, target=["code"], max_documents=99, said=said)
    assert result.facts["sources"]["prose"]["kept"] == 4
    assert any("holds no more than was asked for" in line for line in said)


def test_a_term_list_leaves_out_documents_without_its_terms(tmp_path):
    terms = tmp_path / "terms.txt"
    terms.write_bytes("\ufeffdecoder\r\n\r\njson\r\ndecoder\r\n".encode())
    sources = {"code": write(tmp_path / "code.jsonl", ["the JSON decoder", "a json file", "jsonify", "nothing"])}
    said: list[str] = []
    result = build(tmp_path / "out", sources, terms=str(terms), min_hits=2, said=said)
    assert [row["text"] for row in rows(tmp_path / "out" / "code.train.jsonl")] == ["the JSON decoder"]
    details = [row["detail"] for row in rows(tmp_path / "out" / "rejects" / "code.jsonl")]
    assert details == ["1 hits of the term list, min_hits 2", *["0 hits of the term list, min_hits 2"] * 2]
    assert any("1 blank lines" in line for line in said)
    assert any("repeated terms were passed over: decoder" in line for line in said)
    assert result.facts["selection"]["with_min_hits"] == 1
    terms.write_bytes("d\xe9codeur\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        build(tmp_path / "latin", sources, terms=str(terms), min_hits=2)


def test_a_validation_side_is_written_where_asked_for_and_fractions_of_others_move_nothing(tmp_path):
    sources = {"code": write(tmp_path / "code.jsonl", CODE_PARTS), "prose": write(tmp_path / "prose.jsonl", PROSE_PARTS)}
    first = build(tmp_path / "first", sources, fractions={"prose": {"valid_fraction": 0.2, "test_fraction": 0.2}})
    assert not (tmp_path / "first" / "code.valid.jsonl").exists()
    facts = first.facts["sources"]["prose"]
    assert facts["valid_documents"] == len(rows(tmp_path / "first" / "prose.valid.jsonl")) > 10
    assert facts["train_documents"] + facts["valid_documents"] + facts["test_documents"] == facts["kept"]
    fractions = {"prose": {"valid_fraction": 0.2, "test_fraction": 0.4}, "code": {"test_fraction": 0.5}}
    build(tmp_path / "then", {"prose": sources["prose"], "code": sources["code"]}, fractions=fractions)
    assert (tmp_path / "then" / "prose.valid.jsonl").read_bytes() == (tmp_path / "first" / "prose.valid.jsonl").read_bytes()
    before, after = (rows(tmp_path / name / "prose.test.jsonl") for name in ("first", "then"))
    assert {row["id"] for row in before} < {row["id"] for row in after}
