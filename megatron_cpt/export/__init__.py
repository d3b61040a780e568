"""Export: a promoted checkpoint as a Hugging Face folder that loads from itself alone, and its model card."""
