"""Training: ranks under torchrun that read the frozen plan. No module here imports Hydra or another stage."""
