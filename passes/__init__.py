"""Rewrites of SPMD graphs, one file each."""

from passes.canonicalize import Canonicalize
from passes.eliminate_dead_code import EliminateDeadCode
from passes.place_reductions import PlaceReductions
from passes.shard_rows import ShardRows

PASSES = (Canonicalize, PlaceReductions, ShardRows, EliminateDeadCode)
"""Every pass, in the order in which the optimizer runs them."""

__all__ = ["PASSES", "Canonicalize", "EliminateDeadCode", "PlaceReductions", "ShardRows"]
