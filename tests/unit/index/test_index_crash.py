"""Signal 9 at any moment: what stands at the prefix is whole, refused or absent, and the next run gives the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from megatron_cpt.errors import DataError
from megatron_cpt.index.codec import HfCodec
from megatron_cpt.index.format import IndexWriter
from megatron_cpt.index.shards import shard_batches
from megatron_cpt.index.write import Job, write_index
from megatron_cpt.record.hashing import sha256_bytes
from tests.unit.index.index_examples import ROOT, SAMPLE, byte_level, run_tool, save, write_lines


def flags(tmp_path, folder, source, name):
    return [
        "--input", str(source), "--tokenizer-model", str(folder), "--append-eod", "--workers", "2", "--output-prefix", str(tmp_path / name)
    ]  # fmt: skip


def pair_bytes(tmp_path, name):
    return b"".join((tmp_path / f"{name}_text_document{half}").read_bytes() for half in (".bin", ".idx"))


def killed(mode, known, arguments):
    command = [sys.executable, "-m", "tests.unit.index.kill_runner", mode, ",".join(known), *arguments]
    answer = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.split()


@pytest.fixture
def made(tmp_path):
    """An old corpus and a new one with as many tokens, and the digest of the index of each."""
    folder = save(byte_level(), tmp_path / "tokenizer")
    sources = {name: write_lines(tmp_path / f"{name}.jsonl", [f"{text} {n % 10}{tail}" for n, text in enumerate(SAMPLE * 40)])
               for name, tail in (("old", "1"), ("new", "2"))}  # fmt: skip
    digests = {}
    for name, source in sources.items():
        answer = run_tool("preprocess_data.py", *flags(tmp_path, folder, source, name))
        assert answer.returncode == 0, answer.stderr
        digests[name] = sha256_bytes(pair_bytes(tmp_path, name))
    assert (tmp_path / "old_text_document.bin").stat().st_size == (tmp_path / "new_text_document.bin").stat().st_size
    return folder, sources, digests


def test_a_kill_before_any_call_into_the_file_system_leaves_old_new_or_nothing(tmp_path, made):
    """Two corpora with files of equal sizes: an old .idx beside a new .bin would go unnoticed."""
    folder, sources, digests = made
    states = killed("calls", digests.values(), flags(tmp_path, folder, sources["new"], "old"))
    assert set(states) <= {"whole", "refused", "absent"}
    assert "refused" in states  # between the two renames
    assert states[0] == states[-1] == "whole"
    assert sha256_bytes(pair_bytes(tmp_path, "old")) == digests["new"]
    assert list(tmp_path.glob("*.partial")) == []


def test_a_dozen_kills_at_random_moments_and_then_the_same_bytes(tmp_path, made):
    folder, sources, digests = made
    arguments = flags(tmp_path, folder, sources["new"], "again")
    states = killed("times", [digests["new"]], arguments)
    assert len(states) == 12
    assert set(states) <= {"whole", "refused", "absent"}
    assert run_tool("preprocess_data.py", *arguments).returncode == 0
    assert sha256_bytes(pair_bytes(tmp_path, "again")) == digests["new"]
    assert list(tmp_path.glob("again*.partial")) == []


def test_two_processes_do_not_write_one_index(tmp_path):
    with IndexWriter(tmp_path / "x", num_ids=10), pytest.raises(DataError, match="Another process is writing"):
        IndexWriter(tmp_path / "x", num_ids=10)
    assert list(tmp_path.iterdir()) == []


def _index_in_child(folder, shard, prefix):
    codec = HfCodec.from_file(folder / "tokenizer.json")
    write_index(Job(prefix, codec, lambda: shard_batches(shard), None, dict), say=print)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_started_after_the_parent_encoded_do_not_hang(tmp_path, method):
    folder = save(byte_level(), tmp_path / "tokenizer")
    shard = write_lines(tmp_path / "in.jsonl", SAMPLE * 16)
    _index_in_child(folder, shard, tmp_path / "parent")
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=_index_in_child, args=(folder, shard, tmp_path / f"w{number}")) for number in range(3)]
    for worker in workers:
        worker.start()
    limit = time.monotonic() + 60
    for worker in workers:
        worker.join(max(0.0, limit - time.monotonic()))
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert codes == [0, 0, 0]
    for number in range(3):
        assert (tmp_path / f"w{number}.bin").read_bytes() == (tmp_path / "parent.bin").read_bytes()
