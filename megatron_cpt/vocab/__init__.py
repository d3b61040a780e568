"""The vocab stage: the vocabulary is a contract. Extend it without moving an old id, and prove that. No torch, no megatron."""
