"""Which language a text is in, by py3langid's naive Bayes over byte n-grams. Its model, part of the package, is read without pickle."""

from __future__ import annotations

from functools import cache
from typing import Any

from megatron_cpt.config.filter_schema import LanguageConfig
from megatron_cpt.errors import ConfigError

UNSURE = "und"  # ISO 639-2's code for an undetermined language
NUM_PIECES = 3
# Members of a macrolanguage (ISO 639-3) that the model tells apart: a text of one is in the other too.
PART_OF = {"wuu": "zh", "yue": "zh", "nn": "no", "arz": "ar", "ary": "ar", "fuv": "ff", "uzs": "uz", "sdh": "ku", "gug": "gn", "gom": "kok"}


@cache
def _identifier(among: tuple[str, ...]) -> Any:
    """Return a model of its own, confined to some languages; it takes about 30 MB and a third of a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415 - loaded when languages are asked for

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    unknown = sorted(set(among) - set(identifier.labels))
    if unknown:
        raise ConfigError(
            f"The language model does not know {', '.join(unknown)}.", where="corpus.filters.language",
            next_step=f"Known: {', '.join(sorted(identifier.labels))}.",
        )  # fmt: skip
    if among:
        identifier.set_languages(list(among))
    return identifier


def sample_of(text: str, num_chars: int) -> str:
    """Return at most about `num_chars` of a text: equal pieces of its beginning, middle and end."""
    if len(text) <= num_chars:
        return text
    piece = num_chars // NUM_PIECES
    middle = (len(text) - piece) // 2
    return "\n".join((text[:piece], text[middle : middle + piece], text[len(text) - piece :]))


class LanguageGuess:
    """The settings with the model loaded.

    Raises:
        ConfigError: a language is named that the model does not know.
    """

    def __init__(self, settings: LanguageConfig, *, language: str) -> None:
        self.settings = settings
        self.keep = frozenset(settings.keep or [language])
        among = tuple(sorted({*settings.among, *self.keep})) if settings.among else ()
        self.identifier = _identifier(among)
        if unknown := sorted(self.keep - set(self.identifier.labels)):
            raise ConfigError(
                f"The language model does not know {', '.join(unknown)}, so no text could be kept.", where="corpus.filters.language.keep",
                next_step=f"Name the languages to keep, of: {', '.join(sorted(self.identifier.labels))}.",
            )  # fmt: skip

    def __call__(self, text: str) -> tuple[str | None, float]:
        """Return `(language, confidence)`: None for a text too short to judge, `und` where the model is not sure."""
        sample = sample_of(text, self.settings.sample_chars)
        if sum(map(str.isalpha, sample)) < self.settings.min_chars:
            return None, 0.0
        language, confidence = self.identifier.classify(sample)
        return (language if confidence >= self.settings.min_confidence else UNSURE), confidence

    def problem(self, language: str | None, confidence: float) -> str | None:
        """Return why a text of this language is dropped, if it is."""
        if (
            language is None
            or not self.keep.isdisjoint((language, PART_OF.get(language)))
            or (language == UNSURE and not self.settings.drop_unsure)
        ):
            return None
        return f"{language} with confidence {confidence:.2f}, kept: {', '.join(sorted(self.keep))}"
