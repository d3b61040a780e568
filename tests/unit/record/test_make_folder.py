"""A folder that many processes make at once is there for all of them, also where the file system errs for a moment."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from megatron_cpt.record import store
from megatron_cpt.record.store import make_folder, write_json


def make_at_once(barrier: Barrier, folder: Path, said: multiprocessing.SimpleQueue[str]) -> None:
    """Make a folder with the first looks at it failing, as they do on a network file system that has just heard of it."""
    looks, wrong, plain = iter((errno.ESTALE, errno.ENOENT)), [0], os.stat

    def errs_at_first(path: object, *arguments: object, **more: object) -> os.stat_result:
        code = next(looks, None) if str(path).startswith(str(folder)) else None
        if code is not None:
            wrong[0] += 1
            raise OSError(code, os.strerror(code), str(path))
        return plain(path, *arguments, **more)  # type: ignore[arg-type]

    os.stat = errs_at_first  # type: ignore[assignment]  # this process is the test's own
    barrier.wait()
    try:
        make_folder(folder)
        write_json(folder / f"{os.getpid()}.json", {"looks_that_failed": wrong[0]})
        said.put("")
    except OSError as error:
        said.put(str(error))


def test_sixteen_processes_make_one_tree_at_the_same_moment_while_looks_at_it_fail(tmp_path: Path) -> None:
    """Of 16, one makes it and the others find it there, and are told for a moment that it is no folder (mlcommons/storage#754)."""
    context = multiprocessing.get_context("fork")
    barrier, said, folder = context.Barrier(16), context.SimpleQueue(), tmp_path / "runs" / "law" / "train"
    processes = [context.Process(target=make_at_once, args=(barrier, folder, said)) for _ in range(16)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [said.get() for _ in processes] == [""] * 16
    written = [path.read_text() for path in folder.glob("*.json")]
    assert len(written) == 16
    assert any('"looks_that_failed": 0' not in text for text in written)  # the file system did err


@pytest.mark.parametrize("blocked", ["file", "file/below"])
def test_a_file_in_the_place_of_a_folder_is_refused_at_once(tmp_path: Path, blocked: str) -> None:
    (tmp_path / "file").touch()
    began = time.monotonic()
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / blocked)
    assert time.monotonic() - began < 1


def test_an_error_that_does_not_pass_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(tmp_path / "x"))

    monkeypatch.setattr(store, "FOLDER_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(os, "mkdir", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        make_folder(tmp_path / "x")
