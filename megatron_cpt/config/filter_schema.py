"""What may be asked of the text of a corpus: repairs, rules, language, private data. Every default leaves every text as it is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class UnicodeConfig:
    """Repairs that change what was written, so each is asked for.

    `mojibake: repair` undoes text that was decoded with the wrong codec (needs ftfy); `normal_form` is empty, NFC or NFKC;
    `format_characters: remove` takes out zero-width and direction controls; `line_ends: lf` turns CRLF and lone CR into LF.
    """

    mojibake: str = "keep"
    normal_form: str = ""
    format_characters: str = "keep"
    line_ends: str = "keep"


@dataclass
class QualityRulesConfig:
    """Gopher's quality rules (Rae et al. 2021, arXiv 2112.11446, section A.1.1). A rule that is null is not applied."""

    min_words: int | None = None
    max_words: int | None = None
    min_mean_word_length: float | None = None
    max_mean_word_length: float | None = None
    max_hashes_per_word: float | None = None
    max_ellipses_per_word: float | None = None
    max_bullet_lines: float | None = None
    max_ellipsis_lines: float | None = None
    min_alphabetic_words: float | None = None
    min_han_share: float | None = None
    min_stop_words: int | None = None
    stop_words: list[str] = field(default_factory=list)


@dataclass
class NgramLimitConfig:
    """The share of a text's characters that runs of `n` words may take."""

    n: int = 0
    share: float = 0.0


@dataclass
class RepetitionRulesConfig:
    """Gopher's repetition rules (the same paper, table A1): shares of the document that repeat themselves."""

    max_duplicate_paragraphs: float | None = None
    max_duplicate_paragraph_chars: float | None = None
    max_duplicate_lines: float | None = None
    max_duplicate_line_chars: float | None = None
    max_top_ngram_chars: list[NgramLimitConfig] = field(default_factory=list)
    max_duplicate_ngram_chars: list[NgramLimitConfig] = field(default_factory=list)


@dataclass
class LineRulesConfig:
    """FineWeb's rules on lines (Penedo et al. 2024, arXiv 2406.17557, section 3.6).

    A line ends well when its last character is one of `terminal_marks` (empty: the sentence-final marks of all scripts).
    `spare_markless` keeps a text none of whose lines ends well.
    """

    min_terminal_lines: float | None = None
    terminal_marks: str = ""
    spare_markless: bool = False
    max_short_lines: float | None = None
    short_line_chars: int = 30
    max_duplicate_line_chars: float | None = None
    max_newlines_per_word: float | None = None


@dataclass
class C4RulesConfig:
    """C4's rules (Raffel et al. 2020, JMLR 21(140), section 2.2): lines are taken out, or the document is dropped.

    Where any of them is on, the lines that stay are stripped of white space at both ends.
    """

    max_word_chars: int | None = None
    remove_citations: bool = False
    terminal_lines_only: bool = False
    min_words_per_line: int | None = None
    drop_lorem_ipsum: bool = False
    remove_javascript_lines: bool = False
    drop_curly_brackets: bool = False
    remove_policy_lines: bool = False
    min_sentences: int | None = None


@dataclass
class TextRulesConfig:
    """The rules for the texts of one language. `words: characters` counts each Han character or kana as a word of its own."""

    words: str = "spaced"
    quality: QualityRulesConfig = field(default_factory=QualityRulesConfig)
    repetition: RepetitionRulesConfig = field(default_factory=RepetitionRulesConfig)
    lines: LineRulesConfig = field(default_factory=LineRulesConfig)
    c4: C4RulesConfig = field(default_factory=C4RulesConfig)


@dataclass
class LanguageConfig:
    """Language identification of each text (py3langid). `keep: []` keeps the language of the source.

    `among` confines the guess to some languages (empty: all that the model knows). A text below `min_chars` letters is not judged;
    one whose best guess is below `min_confidence` is kept as `und`, or dropped with `drop_unsure`. `sample_chars` are read of a
    long text, from its beginning, middle and end.
    """

    identify: bool = False
    keep: list[str] = field(default_factory=list)
    among: list[str] = field(default_factory=list)
    min_chars: int = 50
    min_confidence: float = 0.5
    drop_unsure: bool = False
    sample_chars: int = 1500


@dataclass
class PrivateDataConfig:
    """What is done about each kind of private data: `ignore`, `count`, `mask` (replaced by its kind, as `<EMAIL>`) or `drop` the text."""

    email: str = "ignore"
    phone: str = "ignore"
    resident_id_cn: str = "ignore"
    ssn_us: str = "ignore"
    payment_card: str = "ignore"
    ip_address: str = "ignore"
    private_key: str = "ignore"
    api_token: str = "ignore"  # noqa: S105 - an action


@dataclass
class FilterConfig:
    """What is done to the text of every source, by its language. `rules` without the source's language or `any` drop nothing."""

    unicode: UnicodeConfig = field(default_factory=UnicodeConfig)
    rules: dict[str, TextRulesConfig] = field(default_factory=dict)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    private: PrivateDataConfig = field(default_factory=PrivateDataConfig)
