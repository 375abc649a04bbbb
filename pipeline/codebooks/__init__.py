"""Codebooks: fit, search, judge, compare."""
