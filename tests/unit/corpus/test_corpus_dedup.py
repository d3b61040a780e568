"""Near-duplicates: what counts as one, which of them stays, and that nothing else decides it."""

from __future__ import annotations

import hashlib
import itertools
import json
import random

import numpy as np
import pytest

from megatron_cpt.config.schema import CorpusConfig, DedupConfig, NearDedupConfig, ProvenanceConfig, SourceConfig
from megatron_cpt.corpus.build import build_corpus
from megatron_cpt.corpus.dedup import find
from megatron_cpt.corpus.dedup.bands import NO_KEY, BandHasher, dedup_problems, similarity
from megatron_cpt.corpus.dedup.find import find_duplicates, join
from megatron_cpt.corpus.engine import run_first_pass
from megatron_cpt.corpus.scratch import Shard, halves
from megatron_cpt.corpus.tasks import plan_tasks
from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.record.manifest import StageResult

NEAR = NearDedupConfig(enabled=True)
WORDS = [f"word{number}" for number in range(2000)]
LAW = (
    "有限责任公司的股东以其认缴的出资额为限对公司承担责任股份有限公司的股东以其认购的股份为限对公司承担责任公司从事经营活动应当遵守法律法规"
)


def sentence(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(count)]


def changed(words: list[str], *places: int) -> list[str]:
    return [f"other{place}" if place in places else word for place, word in enumerate(words)]


def kept_of(texts: list[str], settings: NearDedupConfig = NEAR, *, verify: bool = True) -> list[int]:
    hasher = BandHasher(settings)
    digests = np.array([halves(hashlib.sha256(text.encode()).digest()) for text in texts], dtype=np.uint64)
    return find_duplicates(
        digests,
        np.array([len(text) for text in texts]),
        np.arange(len(texts)),
        hasher.keys(texts),
        shingles_of=(lambda rows: hasher.shingles([texts[row] for row in rows.tolist()])) if verify else None,
        threshold=settings.threshold,
    ).tolist()


def jaccard(left: list[str], right: list[str], length: int = 5) -> float:
    first, second = ({tuple(words[begin : begin + length]) for begin in range(len(words) - length + 1)} for words in (left, right))
    return len(first & second) / len(first | second)


def test_similarity_is_counted_on_runs_of_words_as_by_hand() -> None:
    words = sentence(random.Random(1), 100)
    other = changed(words, 50)
    left, right = BandHasher(NEAR).shingles([" ".join(words), " ".join(other).upper()])
    assert similarity(left, right) == pytest.approx(jaccard(words, [word.lower() for word in other]))
    assert similarity(left, right) == pytest.approx(91 / 101)  # five of 96 runs hold the word
    assert similarity(left, right[:10], at_least=0.8) == 0.0
    assert similarity(left, left[:0]) == 0.0


def test_chinese_is_compared_by_runs_of_characters() -> None:
    left, right = BandHasher(NEAR).shingles([LAW, LAW.replace("遵守", "遵循")])
    runs = {LAW[begin : begin + 8] for begin in range(len(LAW) - 7)}
    assert len(left) == len(runs)
    assert similarity(left, right) < 1
    assert kept_of([LAW * 2, (LAW * 2).replace("，", ""), "，".join([LAW, LAW])])[:2] == [2, 2]  # punctuation does not count


def test_texts_of_high_similarity_share_a_band_as_often_as_the_formula_says() -> None:
    rng = random.Random(2)
    hasher = BandHasher(NEAR)
    shared = expected = 0.0
    for _ in range(400):
        words = sentence(rng, 60)
        other = changed(words, 10, 30)
        first, second = hasher.keys([" ".join(words), " ".join(other)])
        shared += bool((first == second).any())
        expected += 1 - (1 - jaccard(words, other) ** 8) ** 14
    # both draw 400 pairs of similarity 0.70: 0.44 within four standard errors of 0.025
    assert shared / 400 == pytest.approx(expected / 400, abs=0.1)


def test_a_text_without_words_is_like_no_other() -> None:
    assert (BandHasher(NEAR).keys(["...", "!!", ""]) == NO_KEY).all()
    assert kept_of(["...", "!!!", "?"]) == [0, 1, 2]
    assert BandHasher(NEAR).keys([]).shape == (0, 14)


def test_a_text_shorter_than_a_run_is_one_run() -> None:
    assert kept_of(["Terms of use", "terms of use.", "terms of sale"]) == [1, 1, 2]


def test_the_longest_stays_then_the_smallest_digest_then_the_first() -> None:
    words = sentence(random.Random(3), 200)
    long = " ".join([*words, "more"])
    texts = [" ".join(words), long, " ".join(words), long.replace("more", "last"), long]
    winner = min((text for text in texts if len(text) == len(long)), key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    assert set(kept_of(texts)) == {texts.index(winner)}


def test_the_order_of_documents_changes_nothing() -> None:
    rng = random.Random(4)
    texts = []
    for _ in range(12):  # chains: each text is near its neighbours, the ends are not near each other
        words = sentence(rng, 120)
        for step in range(8):
            words = changed(words, 13 * step)
            texts.append(" ".join(words) + " x" * rng.randrange(3))
    expected = None
    for seed in range(6):
        random.Random(seed).shuffle(texts)
        found = kept_of(texts)
        pairs = {(texts[row], texts[kept]) for row, kept in enumerate(found)}
        assert expected in (None, pairs)
        expected = pairs
        assert 12 < len(set(found)) < len(texts)


def test_what_goes_is_similar_to_what_stays_and_what_stays_is_not_similar() -> None:
    rng = random.Random(5)
    words = sentence(rng, 150)
    texts, rows = [], []
    for step in range(60):
        words = changed(words, rng.randrange(150)) if step % 20 else sentence(rng, 150)
        rows.append(words)
        texts.append(" ".join(words))
    found = kept_of(texts)
    hasher = BandHasher(NEAR)
    keys = hasher.keys(texts)
    for row, kept in enumerate(found):
        assert found[kept] == kept
        assert jaccard(rows[row], rows[kept]) >= 0.8
    for one, two in itertools.combinations(sorted(set(found)), 2):
        assert jaccard(rows[one], rows[two]) < 0.8 or not (keys[one] == keys[two]).any()
    assert len(set(kept_of(texts, verify=False))) < len(set(found))  # whole chains go where nothing is looked at again


def test_long_clusters_are_looked_at_in_blocks_with_the_same_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    words, texts = sentence(rng, 100), []
    for _ in range(80):
        words = changed(words, rng.randrange(100))
        texts.append(" ".join(words))
    whole = kept_of(texts)
    monkeypatch.setattr(find, "BLOCK_CHARS", 1500)
    monkeypatch.setattr(find, "MAX_CACHED_SHINGLES", 300)
    monkeypatch.setattr(find, "BATCH_DOCUMENTS", 3)
    assert kept_of(texts) == whole


def test_joined_sets_are_those_of_a_search_by_hand() -> None:
    rng = np.random.default_rng(7)
    left, right = rng.integers(0, 300, size=(2, 220))
    root = np.arange(300)
    join(root, left[:100], right[:100])
    join(root, left[100:], right[100:])
    expected = list(range(300))
    for one, two in [*zip(left.tolist(), right.tolist(), strict=True)] * 1:
        a, b = expected[one], expected[two]
        expected = [min(a, b) if each in (a, b) else each for each in expected]
    assert root.tolist() == expected


def sources_of(tmp_path, files: dict[str, list[dict]], folder: str = "in") -> dict[str, SourceConfig]:
    """Write `{"source/file": records}` and return the sources."""
    for name, records in files.items():
        path = tmp_path / folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    provenance = ProvenanceConfig(origin="made here", date="2026", obtained="by hand")
    return {
        name: SourceConfig(
            path=str(tmp_path / folder / name), role="domain", licence="MIT", provenance=provenance, language="en", test_fraction=0.0
        )
        for name in sorted({name.split("/")[0] for name in files})
    }


def build(tmp_path, sources: dict[str, SourceConfig], settings: CorpusConfig, name: str = "out"):
    result = StageResult(tmp_path / name)
    result.folder.mkdir()
    build_corpus(result, sources=sources, say=lambda line: None, settings=settings)
    return result


def near_settings(**engine) -> CorpusConfig:
    settings = CorpusConfig(dedup=DedupConfig(near=NearDedupConfig(enabled=True)))
    for key, value in engine.items():
        setattr(settings.engine, key, value)
    return settings


def documents(folder):
    return [json.loads(line) for path in sorted(folder.glob("*.train.jsonl")) for line in path.read_text().splitlines()]


def rejects(folder):
    return [json.loads(line) for path in sorted((folder / "rejects").iterdir()) for line in path.read_text().splitlines()]


def test_one_document_in_two_files_is_kept_once_whatever_the_number_of_tasks_and_workers(tmp_path) -> None:
    """Others look within each file or task alone (huggingface/datatrove issues 372 and 301)."""
    rng = random.Random(8)
    words = [sentence(rng, 80) for _ in range(40)]
    records = [{"id": f"a{number}", "text": " ".join(row)} for number, row in enumerate(words)]
    again = [{"id": f"b{number}", "text": " ".join(changed(row, 40)) + " end"} for number, row in enumerate(words)]
    sources = sources_of(tmp_path, {"law/1": records[:20], "law/2": again[:30], "web/1": records[20:] + again[30:] + records[:1]})
    outcomes = []
    for name, engine in (("one", {"workers": 1}), ("many", {"workers": 2, "task_mb": 0.004})):
        result = build(tmp_path, sources, near_settings(**engine), name)
        outcomes.append([(document["id"], document["text"]) for document in documents(result.folder)])
        assert {key: result.facts["duplicates"][key] for key in ("dropped_equal", "dropped_near", "clusters")} == {
            "dropped_equal": 0, "dropped_near": 41, "clusters": 40,
        }  # fmt: skip
    assert outcomes[0] == outcomes[1]
    assert sorted(document_id for document_id, _ in outcomes[0]) == sorted(record["id"] for record in again)  # the longer ones
    dropped = {row["detail"] for row in rejects(result.folder) if row["reason"] == "near_duplicate"}
    assert any(detail.endswith("is near that of the kept web: b39") for detail in dropped)
    report = json.loads((result.folder / "duplicates.json").read_text())
    assert report["cluster_sizes"] == {"2": 39, "3": 1}
    assert report["largest"][0]["kept"]["id"] == "b0"
    assert {shown["id"] for shown in report["largest"][0]["dropped"]} == {"a0"}
    assert {"dropped_from": "web", "kept_in": "law", "documents": 11} in report["between_sources"]
    assert "- near: a0 (web): word" in (result.folder / "duplicates.md").read_text()


def test_two_records_with_one_id_and_other_texts_both_stay_and_removal_does_not_count_places(tmp_path) -> None:
    """Ids that follow from the chunks a file is read in remove the wrong rows (NVIDIA-NeMo/Curator issue 2092)."""
    rng = random.Random(9)
    rows = [sentence(rng, 60) for _ in range(4)]
    five = [
        {"id": "x", "text": " ".join(rows[0])},
        {"id": "y", "text": " ".join(rows[1])},
        {"id": "x", "text": " ".join(rows[2])},
        {"id": "z", "text": " ".join(changed(rows[1], 30)) + " longer"},
        {"id": "w", "text": " ".join(rows[3])},
    ]
    sources = sources_of(tmp_path, {"law/1": five})
    found = []
    for name, size in (("a", 64.0), ("b", 0.0006), ("c", 0.0011)):
        folder = build(tmp_path, sources, near_settings(task_mb=size), name).folder
        found.append(documents(folder))
        assert [(row["line"], row["reason"]) for row in rejects(folder)] == [(2, "near_duplicate")]
        assert rejects(folder)[0]["detail"].endswith("the kept law: z")
    assert found[0] == found[1] == found[2]
    assert [document["id"].split("#")[0] for document in found[0]] == ["x", "x", "z", "w"]
    assert len({document["id"] for document in found[0]}) == 4


def test_a_cut_file_between_the_passes_is_named_with_its_task(tmp_path) -> None:
    """A signature file that was cut ends others with an opaque error on the size of a buffer (huggingface/datatrove issue 301)."""
    sources = sources_of(tmp_path, {"law/1": [{"text": " ".join(sentence(random.Random(10), 30))}]})
    plan = plan_tasks(sources, near_settings(), inputs={})
    scratch = tmp_path / "scratch"
    plan.save(scratch)
    run_first_pass(scratch, plan, say=lambda line: None)
    keys = Shard.load(scratch, plan.tasks[0]).folder / "bands.bin"
    assert keys.stat().st_size == 14 * 8
    keys.write_bytes(keys.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"task over .*1\.jsonl is incomplete: its file bands\.bin is cut"):
        Shard.load(scratch, plan.tasks[0])


def test_texts_that_differ_in_case_and_spaces_are_equal_by_units(tmp_path) -> None:
    sources = sources_of(
        tmp_path, {"law/1": [{"text": "The Law."}, {"text": "the  law"}, {"text": "..."}, {"text": "!"}, {"text": "The law 2"}]}
    )
    settings = CorpusConfig(dedup=DedupConfig(compare="units"))
    assert [document["text"] for document in documents(build(tmp_path, sources, settings).folder)] in (
        ["The Law.", "...", "!", "The law 2"],
        ["the  law", "...", "!", "The law 2"],
    )


def test_settings_that_cannot_be_are_refused_by_name(tmp_path) -> None:
    near = NearDedupConfig(num_bands=0, ngram=0, threshold=1.5, seed=-1)
    assert len(dedup_problems(DedupConfig(compare="words", near=near))) == 5
    with pytest.raises(ConfigError, match=r"corpus\.dedup\.near\.num_bands is 0"):
        build(tmp_path, sources_of(tmp_path, {"law/1": [{"text": "a"}]}), CorpusConfig(dedup=DedupConfig(near=near)))
