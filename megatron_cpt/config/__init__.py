"""The configuration: one dataclass per group of `conf/`, pure checks, and composition by Hydra (in `compose` only)."""
