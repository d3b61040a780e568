"""Counting first: model shapes, the frozen run plan, and estimates. Imports neither torch, megatron nor hydra."""
