"""The corpus stage: strangers' text in, clean and labelled documents out, every record accounted for. No torch, no megatron."""
