"""The model: megatron's GPTModel, Hugging Face weights in and out, distributed checkpoints, initialisation. Shared by the stages."""
