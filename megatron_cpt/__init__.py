"""Continued pretraining of language models on Megatron-core: counted first, watched, and rolled back when it fails."""

__version__ = "0.1.0"
