"""The page on troubleshooting quotes messages that the code can print, under the exit codes that they end with."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from document_workspace import make
from messages import FILLED_IN, Message, kinds, messages

from megatron_cpt import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"


def quoted() -> list[tuple[int, str]]:
    """Return the exit code and the message of every row."""
    found = []
    for part in PAGE.read_text(encoding="utf-8").split("\n## Exit code ")[1:]:
        found += [(int(part.split("\n")[0]), message) for message in re.findall(r"^\| `([^`]*)` \|", part, flags=re.MULTILINE)]
    return found


def can_end_with(message: Message, exit_code: int) -> bool:
    return kinds()[message.kind].exit_code == exit_code if message.kind else exit_code in (2, 3)  # listed problems end with either


@pytest.mark.parametrize(("exit_code", "text"), quoted())
def test_every_quoted_message_is_in_the_source_and_ends_with_its_exit_code(exit_code: int, text: str) -> None:
    fitting = [message for message in messages() if message.matches(text) or message.text.strip() == text]
    assert fitting, "no such message in the source"
    assert any(can_end_with(message, exit_code) for message in fitting), {message.kind for message in fitting}


def test_every_exit_code_has_a_part_of_the_page() -> None:
    parts = {int(code) for code in re.findall(r"^## Exit code (\d+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)}
    assert parts == {kind.exit_code for kind in kinds().values()} | {0, 130}
    assert {code for code, _ in quoted()} == parts - {0, 130}


PROVOKED = [
    (2, ["plan", "experiment=mine", "shedule.peak_lr=1"]),
    (2, ["plan", "experiment=quikstart"]),
    (2, ["plan"]),
    (2, ["plan", "experiment=own_corpus"]),
    (2, ["plan", "experiment=mine", "blend.num_tokens=many"]),
    (2, ["plan", "experiment=mine", "parallel.tensor=2"]),
    (2, ["plan", "experiment=mine", "cluster.ranks_per_node=3"]),
    (2, ["plan", "experiment=mine", "parallel.global_batch_size=3"]),
    (2, ["plan", "experiment=mine", "parallel.sequence_length=16384"]),
    (2, ["plan", "experiment=mine", "stop.max_usd=5"]),
    (2, ["plan", "experiment=mine", "schedule.kind=cosin"]),
    (3, ["corpus", "experiment=mine", "source.mine.test_fraction=0.000001"]),
    (3, ["corpus", "experiment=mine", "source.mine.path=none.jsonl"]),
    (3, ["index", "experiment=mine"]),
    (3, ["account", "runs/none"]),
    (4, ["plan", "experiment=mine", "model.path=none"]),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize(("exit_code", "words"), PROVOKED, ids=lambda value: " ".join(value) if isinstance(value, list) else str(value))
def test_messages_that_a_reader_meets_first_are_on_the_page(
    exit_code: int, words: list[str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    own = ["--config-dir", "site"] if "experiment=mine" in words else []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        assert cli.main([*words, *own]) == exit_code
    said = re.sub(r"^(?:\w+: (?:\d+ problems:\n)?| +\d+\. )", "", err.getvalue(), flags=re.MULTILINE).splitlines()
    patterns = [".*".join(map(re.escape, (part.strip() for part in text.split(FILLED_IN)))) for code, text in quoted() if code == exit_code]
    assert any(re.match(pattern, line) for line in said for pattern in patterns if len(pattern) > 8), err.getvalue()
