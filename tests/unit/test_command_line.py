"""What a user types reaches the composed configuration, in whatever order it was typed."""

from __future__ import annotations

import pytest

from megatron_cpt.cli import main


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "experiment=tiny", "run_name=mine", "--cfg", "job"],
        ["run", "--cfg", "job", "experiment=tiny", "run_name=mine"],
        ["run", "experiment=tiny", "--cfg", "job", "run_name=mine"],
        ["plan", "experiment=tiny", "--cfg", "job", "run_name=mine"],
    ],
)
def test_overrides_may_stand_before_between_and_after_options(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert "run_name: mine" in capsys.readouterr().out


def test_an_unknown_option_is_no_override(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "experiment=tiny", "--cfg", "job", "--untill", "plan"])
    assert ended.value.code == 2
    assert "--untill" in capsys.readouterr().err
