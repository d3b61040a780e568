"""The preflight names the node that is not fit, and says why; what all nodes have in common is nobody's fault."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cpt.submit.node_check import TOKEN_NAME, NodeAnswer, look
from megatron_cpt.submit.preflight import Asked, PreflightFailed, preflight, problems_of

H100 = ("NVIDIA H100 80GB HBM3, 550.54.15",) * 8
GOOD = NodeAnswer("n1", time=1000.5, sees_token=True, free_bytes=10**12, gpus=H100, software="Python 3.12.3, megatron_cpt abc")
NODES = ("n1", "n2", "rack-7-b")


def asked(**changes: object) -> Asked:
    """Return three good nodes, with something else about n2."""
    answers = {node: replace(GOOD, node=node) for node in NODES}
    answers["n2"] = replace(answers["n2"], **changes)  # type: ignore[arg-type]
    return Asked(NODES, began=1000.0, ended=1003.0, gpus_per_node=8, min_free_bytes=10**11, answers=answers)


def test_nodes_that_answer_and_agree_have_no_problem() -> None:
    assert problems_of(asked()) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"time": 990.0}, "its clock is 8 s or more behind"),
        ({"time": 1065.0}, "its clock is 60 s or more ahead"),
        ({"sees_token": False}, "another folder than the first node's"),
        ({"free_bytes": 5 * 10**9}, "5.00 GB are free on the run's disk, 100.00 GB are needed"),
        ({"gpus": H100[:7]}, "7 GPUs answer there, 8 are needed"),
        ({"gpus": ("NVIDIA H100 80GB HBM3, 535.161.08",) * 8}, "535.161.08 where others have 8 x NVIDIA H100 80GB HBM3, 550.54.15"),
        ({"software": "Python 3.11.9, megatron_cpt abc"}, "its software differs: Python 3.11.9"),
    ],
)
def test_the_node_that_differs_is_named_with_what_differs(change: dict[str, object], words: str) -> None:
    (node,) = problems_of(asked(**change)).items()
    assert node[0] == "n2"
    assert words in node[1][0]


def test_a_clock_within_the_time_of_the_question_is_not_blamed() -> None:
    assert problems_of(asked(time=1004.9)) == {}


def test_a_node_without_an_answer_is_named() -> None:
    whole = asked()
    silent = replace(whole, answers={node: answer for node, answer in whole.answers.items() if node != "rack-7-b"})
    assert list(problems_of(silent)) == ["rack-7-b"]


def test_another_folder_at_the_same_path_is_seen(tmp_path: Path) -> None:
    (tmp_path / TOKEN_NAME).write_text("of the first node")
    assert look(tmp_path, "of the first node").sees_token
    assert not look(tmp_path, "of another job").sees_token
    assert not look(tmp_path / "absent", "of the first node").sees_token


def bodies(folder: Path, nodes: str, ranks: str = "exit 1") -> Path:
    for name, body in (("nodes.sh", nodes), ("ranks.sh", ranks)):
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


# answers as the real module does, for the nodes that it is told
NODES_SH = 'for node in {nodes}; do SLURMD_NODENAME=$node {python} -m "$@"; done'


@pytest.mark.parametrize(
    ("answering", "ranks", "bad", "words"),
    [
        ("n1", "", "n2", "n2: gave no answer"),
        ("n1 n2", 'touch "$3/arrived/n1"; exit 1', "n2", "n2: did not come to the all-reduce"),
        ("n1 n2", 'touch "$3/arrived/n1" "$3/arrived/n2"; exit 1', None, "the all-reduce between the nodes failed"),
        ("", "", None, "mend it, then submit again"),
    ],
)
def test_only_nodes_of_which_others_are_better_are_left_out_of_the_next_start(
    answering: str, ranks: str, bad: str | None, words: str, tmp_path: Path
) -> None:
    found = bodies(tmp_path, NODES_SH.format(nodes=answering, python=sys.executable), ranks)
    with pytest.raises(PreflightFailed, match=words):
        preflight(tmp_path / "x", nodes=("n1", "n2"), ranks_per_node=2, gpus_per_node=0, min_free_bytes=1, bodies=found)
    left_out = tmp_path / "x" / "bad-nodes"
    assert (left_out.read_text() if left_out.exists() else None) == bad
