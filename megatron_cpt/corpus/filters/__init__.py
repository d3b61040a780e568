"""Filters of one text: repairs by choice, rules of quality by language, language, private data. Each drop says why.

A package for the corpus stage alone; it reads no file and keeps no state between texts.
"""

from megatron_cpt.corpus.filters.text_filters import TextFilters, Verdict

__all__ = ["TextFilters", "Verdict"]
