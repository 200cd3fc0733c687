"""Rewrites of SPMD graphs, one file each."""

from passes.canonicalize import Canonicalize
from passes.eliminate_dead_code import EliminateDeadCode
from passes.place_reductions import PlaceReductions

PASSES = (Canonicalize, PlaceReductions, EliminateDeadCode)
"""Every pass, in the order in which the optimizer runs them."""

__all__ = ["PASSES", "Canonicalize", "EliminateDeadCode", "PlaceReductions"]
