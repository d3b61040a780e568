"""Which documents say the same: equal texts, and near-duplicates by MinHash bands and exact similarity."""
