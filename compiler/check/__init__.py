"""Verdicts: whether two SPMD graphs compute the same function. Imports ir only."""
