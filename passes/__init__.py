"""Rewrites of SPMD graphs, one file each."""

from passes.canonicalize import Canonicalize
from passes.canonicalize_slices import CanonicalizeSlices
from passes.eliminate_dead_code import EliminateDeadCode
from passes.place_reductions import PlaceReductions
from passes.regroup_sums import RegroupSums
from passes.shard_rows import ShardRows
from passes.unshard_rows import UnshardRows

PASSES = (
    Canonicalize,
    CanonicalizeSlices,
    UnshardRows,
    RegroupSums,
    PlaceReductions,
    ShardRows,
    EliminateDeadCode,
)
"""Every pass, in the order in which the optimizer runs them."""

__all__ = [
    "PASSES",
    "Canonicalize",
    "CanonicalizeSlices",
    "EliminateDeadCode",
    "PlaceReductions",
    "RegroupSums",
    "ShardRows",
    "UnshardRows",
]
