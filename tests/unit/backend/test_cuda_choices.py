"""Which of the optional CUDA packages is used is always said, and a package of the same name by someone else is not taken for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_cpt.backend.cuda import in_use, installed_versions


def test_nothing_installed_names_what_is_used_instead() -> None:
    said = in_use({"transformer_engine": None, "apex": None, "flash_attn": None})
    assert said == {
        "transformer_engine": "not found: megatron's linear layers, torch's rms_norm and scaled_dot_product_attention",
        "apex": "not found: torch's fused AdamW",
        "flash_attn": "not found: torch's scaled_dot_product_attention",
    }


def test_versions_in_use_are_named() -> None:
    assert in_use({"transformer_engine": "2.9", "apex": None, "flash_attn": "2.8"}) == {
        "transformer_engine": "2.9",
        "apex": "not found: Transformer Engine's fused Adam",
        "flash_attn": "2.8",
    }


@pytest.mark.parametrize(
    ("found", "package", "said"),
    [
        ({"transformer_engine": "2.9", "apex": "0.1", "flash_attn": None}, "apex", "0.1, not used"),
        ({"transformer_engine": None, "apex": "0.1", "flash_attn": "2.8"}, "flash_attn", "2.8, not used without Transformer Engine"),
    ],
)
def test_a_package_that_is_there_but_not_used_is_said_to_be_so(found: dict[str, str | None], package: str, said: str) -> None:
    assert in_use(found)[package].startswith(said)


def test_a_package_named_apex_without_nvidias_kernels_is_not_apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "apex" not in sys.modules
    assert installed_versions()["apex"] is None


def test_a_package_without_recorded_version_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "amp_C.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_versions()["apex"] == "found"
