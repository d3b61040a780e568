"""The parts of a drill on files made here: what is shared, what is poisoned, what is planned, and what counts as a change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_cpt.drill.page import DrillResult, markdown
from megatron_cpt.drill.poison import poison_index
from megatron_cpt.drill.promises import Checklist, Promise
from megatron_cpt.drill.share import changes, only_grew, share_folder, snapshot
from megatron_cpt.errors import DataError
from megatron_cpt.index.format import IndexWriter
from megatron_cpt.record.hashing import sha256_file
from megatron_cpt.record.index_pair import open_pair
from megatron_cpt.record.store import append_line, write_text

NUM_IDS, END = 300, 256


def write_index(prefix: Path, documents: list[list[int]]) -> None:
    with IndexWriter(prefix, num_ids=NUM_IDS) as writer:
        for ids in documents:
            writer.add([*ids, END])
        writer.finish()


def test_a_poisoned_index_keeps_lengths_and_end_marks_and_nothing_else(tmp_path: Path) -> None:
    documents = [[number, number + 1, number + 1, number + 2] * 10 for number in range(0, 250, 10)]
    write_index(tmp_path / "sound", documents)
    before = sha256_file(tmp_path / "sound.bin")
    assert poison_index(tmp_path / "sound", tmp_path / "bad", num_ids=NUM_IDS, end_id=END, num_tokens=400) == (10, 410)  # 41 tokens each
    poison_index(tmp_path / "sound", tmp_path / "again", num_ids=NUM_IDS, end_id=END, num_tokens=400)
    assert sha256_file(tmp_path / "bad.bin") == sha256_file(tmp_path / "again.bin")
    assert sha256_file(tmp_path / "sound.bin") == before
    index = open_pair(tmp_path / "bad")
    assert index.num_documents == 10
    seen = set()
    for number in range(10):
        bad = index.document(number)
        assert len(bad) == 41
        assert bad[-1] == END
        seen |= set(bad[:-1].tolist())
    assert len(seen) == 8
    assert END not in seen
    assert max(seen) < NUM_IDS


def test_a_source_with_too_few_tokens_is_taken_whole(tmp_path: Path) -> None:
    write_index(tmp_path / "sound", [[1, 2, 3]])
    assert poison_index(tmp_path / "sound", tmp_path / "bad", num_ids=NUM_IDS, end_id=END, num_tokens=10_000) == (1, 4)


def test_a_shared_copy_follows_no_change_of_whole_files_and_takes_no_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_text(run / "init" / "weights", "weights")
    write_text(run / "init" / "checkpoint.json", "{}")
    (run / "init" / ".lock").touch()
    share_folder(run / "init", tmp_path / "copy", without=("checkpoint.json",))
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["weights"]
    assert (tmp_path / "copy" / "weights").stat().st_ino == (run / "init" / "weights").stat().st_ino
    write_text(tmp_path / "copy" / "weights", "other")
    assert (run / "init" / "weights").read_text() == "weights"


def test_every_change_of_a_run_is_seen_and_its_bill_may_only_grow(tmp_path: Path) -> None:
    for name in ("good.json", "plan/plan.yaml", "drill/rate-1/good.json", "train/.lock"):
        write_text(tmp_path / name, name)
    append_line(tmp_path / "ledger.jsonl", {"kind": "start"})
    before, size, digest = snapshot(tmp_path), (tmp_path / "ledger.jsonl").stat().st_size, sha256_file(tmp_path / "ledger.jsonl")
    write_text(tmp_path / "drill" / "rate-1" / "good.json", "a drill is no part of the run")
    append_line(tmp_path / "ledger.jsonl", {"kind": "end"})
    assert changes(before, snapshot(tmp_path)) == []
    assert only_grew(tmp_path / "ledger.jsonl", size_before=size, sha256_before=digest)
    write_text(tmp_path / "good.json", "moved")
    (tmp_path / "plan" / "plan.yaml").unlink()
    write_text(tmp_path / "train" / "new", "")
    assert changes(before, snapshot(tmp_path)) == ["good.json", "plan/plan.yaml", "train/new"]
    write_text(tmp_path / "ledger.jsonl", json.dumps({"kind": "forged"}) + "\n" * 50)
    assert not only_grew(tmp_path / "ledger.jsonl", size_before=size, sha256_before=digest)


def test_an_error_while_a_promise_is_tested_is_a_broken_promise() -> None:
    checks = Checklist()

    def fails() -> tuple[bool, str]:
        raise DataError("A record is missing.", where="good.json")

    assert not checks.test("the pointer stays", fails)
    checks.skip("the export refuses", because="there was no rollback")
    assert checks.test("the event is there", lambda: (True, "yes"))
    assert [promise.held for promise in checks.promises] == [False, None, True]
    assert [promise.promise for promise in checks.broken] == ["the pointer stays", "the export refuses"]
    assert "good.json" in checks.promises[0].seen


@pytest.mark.parametrize(
    ("held", "words"), [(True, "Every promise held."), (False, "NOT every promise held."), (None, "NOT every promise held.")]
)
def test_the_page_says_at_once_whether_every_promise_held(held: bool | None, words: str) -> None:
    result = DrillResult("rate-1", "rate", "the peak rate times 100 (0.5)", "good", "init/checkpoint", "ab", 8, 1024, 9.5,
                         (Promise("the export refuses", held, "a | b"),))  # fmt: skip
    assert words in markdown(result)
    assert "a \\| b" in markdown(result)
    assert result.to_record()["held"] is (held is True)
