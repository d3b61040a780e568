"""Promises about the Chinese documents: nothing that a reader runs or sees on the screen differs from the English ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [("README.md", "README.zh.md"), ("docs/tutorial.md", "docs/zh/tutorial.md")]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(name: str) -> str:
    return FENCE.sub("", text(name))


def without_comments(block: str) -> list[str]:
    """The lines of a block without what stands behind a `#`, which a translation may put into its own words."""
    return [re.sub(r"\s+#.*$|^#.*$", "", line).rstrip() for line in block.splitlines()]


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_a_translation_has_the_commands_and_outputs_of_the_original_in_its_order(english: str, chinese: str) -> None:
    originals, translations = FENCE.findall(text(english)), FENCE.findall(text(chinese))
    assert len(originals) > 5
    assert [kind for kind, _ in translations] == [kind for kind, _ in originals]
    for (kind, original), (_, translation) in zip(originals, translations, strict=True):
        assert without_comments(translation) == without_comments(original), kind


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_a_translation_has_the_headings_tables_and_code_words_of_the_original(english: str, chinese: str) -> None:
    def outline(name: str) -> list[str]:
        return [line.split(" ")[0] for line in prose(name).splitlines() if re.match(r"#+ ", line)]

    def columns(name: str) -> list[int]:
        return [line.count("|") for line in prose(name).splitlines() if line.startswith("|")]

    assert outline(chinese) == outline(english)
    assert columns(chinese) == columns(english)
    figures = [sorted(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", prose(name))) for name in (english, chinese)]
    assert figures[1] == figures[0]


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_each_language_leads_to_the_other_and_the_translation_is_in_chinese(english: str, chinese: str) -> None:
    levels = "../" * (len(Path(chinese).parts) - len(Path(english).parts))
    assert f"]({Path(chinese).relative_to(Path(english).parent)})" in text(english)
    assert f"]({levels}{Path(english).name})" in text(chinese)
    shown = re.sub(r"`[^`]*`|\]\([^)]*\)|^\[[\w-]+\]: .*$", "", prose(chinese), flags=re.MULTILINE)
    assert len(CHINESE.findall(shown)) > 1000
    assert re.findall(r"(?:\b[A-Za-z'-]+[,;]? ){7,}", shown) == []  # what nobody translated


@pytest.mark.parametrize("name", [name for pair in PAIRS for name in pair])
def test_every_link_to_a_file_of_the_repository_leads_to_one(name: str) -> None:
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose(name))
    assert len(targets) > 5
    assert [target for target in targets if not ((ROOT / name).parent / target).exists()] == []
