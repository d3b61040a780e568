"""Text as units, and runs of units by their hashes: what the evaluation and the corpus compare texts with. No torch; imports no stage."""
