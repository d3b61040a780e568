"""The index stage: documents to Megatron's `.bin/.idx`, without importing torch or megatron."""
