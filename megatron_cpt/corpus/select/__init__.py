"""Choosing documents of a pool by their likeness to a domain: hashed n-grams, importance weights, Gumbel top-k, term lists."""
