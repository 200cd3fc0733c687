"""Rewrites of SPMD graphs, one file each."""
