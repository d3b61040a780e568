"""Evaluation decides: pure rules, a verdict, and its execution. Imports neither torch, megatron nor hydra."""
