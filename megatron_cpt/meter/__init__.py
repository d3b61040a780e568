"""What was spent: the ledger of every attempt, energy counters, and totals. Imports neither torch, megatron nor hydra."""
