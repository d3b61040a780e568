"""Evaluation: bits per byte of any checkpoint by one piece of code, so that base and candidate can be compared."""
