"""Records: content hashes, atomic files, manifests and typed plain data. Imports neither torch, megatron nor hydra."""
