"""What may be asked of the text of a corpus: repairs, rules, language, private data. Every default leaves every text as it is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class UnicodeConfig:
    """Repairs that change what was written, so each is asked for.

    `mojibake: repair` undoes text that was decoded with the wrong codec (needs ftfy); `normal_form` is empty, NFC or NFKC;
    `format_characters: remove` takes out zero-width and direction controls; `line_ends: lf` turns CRLF and lone CR into LF.
    """

    mojibake: str = "keep"  #: text decoded with the wrong codec; repair needs ftfy
    normal_form: str = ""  #: Unicode normal form; empty: none
    format_characters: str = "keep"  #: zero-width and direction controls
    line_ends: str = "keep"  #: CRLF and lone CR; lf: they become LF


@dataclass
class QualityRulesConfig:
    """Gopher's quality rules (Rae et al. 2021, arXiv 2112.11446, section A.1.1). A rule that is null is not applied."""

    min_words: int | None = None  #: [words] a shorter text is dropped
    max_words: int | None = None  #: [words] a longer text is dropped
    min_mean_word_length: float | None = None  #: [characters] least mean length of a word
    max_mean_word_length: float | None = None  #: [characters] greatest mean length of a word
    max_hashes_per_word: float | None = None  #: [ratio] hash signs over words
    max_ellipses_per_word: float | None = None  #: [ratio] ellipses over words
    max_bullet_lines: float | None = None  #: [share] lines that begin with a bullet
    max_ellipsis_lines: float | None = None  #: [share] lines that end with an ellipsis
    min_alphabetic_words: float | None = None  #: [share] words with a letter
    min_han_share: float | None = None  #: [share] Han characters among all that are no white space
    min_stop_words: int | None = None  #: [words] stop words that a text must hold
    stop_words: list[str] = field(default_factory=list)  #: words that count as stop words


@dataclass
class NgramLimitConfig:
    """The share of a text's characters that runs of `n` words may take."""

    n: int = 0  #: [words] length of the run
    share: float = 0.0  #: [share] characters that it may take


@dataclass
class RepetitionRulesConfig:
    """Gopher's repetition rules (the same paper, table A1): shares of the document that repeat themselves."""

    max_duplicate_paragraphs: float | None = None  #: [share] paragraphs that stood before
    max_duplicate_paragraph_chars: float | None = None  #: [share] characters in them
    max_duplicate_lines: float | None = None  #: [share] lines that stood before
    max_duplicate_line_chars: float | None = None  #: [share] characters in them
    max_top_ngram_chars: list[NgramLimitConfig] = field(default_factory=list)  #: limits on the most frequent run of each length
    max_duplicate_ngram_chars: list[NgramLimitConfig] = field(default_factory=list)  #: limits on all repeated runs of each length


@dataclass
class LineRulesConfig:
    """FineWeb's rules on lines (Penedo et al. 2024, arXiv 2406.17557, section 3.6).

    A line ends well when its last character is one of `terminal_marks` (empty: the sentence-final marks of all scripts).
    `spare_markless` keeps a text none of whose lines ends well.
    """

    min_terminal_lines: float | None = None  #: [share] lines that end well
    terminal_marks: str = ""  #: characters that end a line well; empty: the sentence-final marks of all scripts
    spare_markless: bool = False  #: keep a text none of whose lines ends well
    max_short_lines: float | None = None  #: [share] lines below short_line_chars
    short_line_chars: int = 30  #: [characters] a shorter line is short
    max_duplicate_line_chars: float | None = None  #: [share] characters in lines that stood before
    max_newlines_per_word: float | None = None  #: [ratio] line breaks over words


@dataclass
class C4RulesConfig:
    """C4's rules (Raffel et al. 2020, JMLR 21(140), section 2.2): lines are taken out, or the document is dropped.

    Where any of them is on, the lines that stay are stripped of white space at both ends.
    """

    max_word_chars: int | None = None  #: [characters] a line with a longer word is taken out
    remove_citations: bool = False  #: take out citation marks such as [3]
    terminal_lines_only: bool = False  #: take out lines that do not end well
    min_words_per_line: int | None = None  #: [words] a shorter line is taken out
    drop_lorem_ipsum: bool = False  #: drop a text that holds lorem ipsum
    remove_javascript_lines: bool = False  #: take out lines that speak of JavaScript
    drop_curly_brackets: bool = False  #: drop a text with a curly bracket
    remove_policy_lines: bool = False  #: take out lines of terms and cookie notices
    min_sentences: int | None = None  #: [sentences] a text with fewer is dropped


@dataclass
class TextRulesConfig:
    """The rules for the texts of one language. `words: characters` counts each Han character or kana as a word of its own."""

    words: str = "spaced"  #: what a word is
    quality: QualityRulesConfig = field(default_factory=QualityRulesConfig)  #: Gopher's quality rules
    repetition: RepetitionRulesConfig = field(default_factory=RepetitionRulesConfig)  #: Gopher's repetition rules
    lines: LineRulesConfig = field(default_factory=LineRulesConfig)  #: FineWeb's rules on lines
    c4: C4RulesConfig = field(default_factory=C4RulesConfig)  #: C4's rules


@dataclass
class LanguageConfig:
    """Language identification of each text (py3langid). `keep: []` keeps the language of the source.

    `among` confines the guess to some languages (empty: all that the model knows). A text below `min_chars` letters is not judged;
    one whose best guess is below `min_confidence` is kept as `und`, or dropped with `drop_unsure`. `sample_chars` are read of a
    long text, from its beginning, middle and end.
    """

    identify: bool = False  #: whether the language of each text is identified
    keep: list[str] = field(default_factory=list)  #: languages to keep; empty: that of the source
    among: list[str] = field(default_factory=list)  #: languages to guess among; empty: all that the model knows
    min_chars: int = 50  #: [letters] a shorter text is not judged
    min_confidence: float = 0.5  #: [probability] below it the language is und
    drop_unsure: bool = False  #: drop those texts
    sample_chars: int = 1500  #: [characters] read of a long text


@dataclass
class PrivateDataConfig:
    """What is done about each kind of private data: `ignore`, `count`, `mask` (replaced by its kind, as `<EMAIL>`) or `drop` the text."""

    email: str = "ignore"  #: e-mail addresses
    phone: str = "ignore"  #: telephone numbers
    resident_id_cn: str = "ignore"  #: Chinese resident identity numbers
    ssn_us: str = "ignore"  #: US social security numbers
    payment_card: str = "ignore"  #: payment card numbers
    ip_address: str = "ignore"  #: IP addresses
    private_key: str = "ignore"  #: private keys
    #: tokens of well-known services
    api_token: str = "ignore"  # noqa: S105 - an action


@dataclass
class FilterConfig:
    """What is done to the text of every source, by its language. `rules` without the source's language or `any` drop nothing."""

    unicode: UnicodeConfig = field(default_factory=UnicodeConfig)  #: repairs of the text
    rules: dict[str, TextRulesConfig] = field(default_factory=dict)  #: rules by language, and any for those that have none of their own
    language: LanguageConfig = field(default_factory=LanguageConfig)  #: language identification
    private: PrivateDataConfig = field(default_factory=PrivateDataConfig)  #: private data
