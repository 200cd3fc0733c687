"""Rewrites of SPMD graphs, one file each."""

from passes.canonicalize import Canonicalize
from passes.canonicalize_slices import CanonicalizeSlices
from passes.dispatch_rows import DispatchRows
from passes.eliminate_dead_code import EliminateDeadCode
from passes.fuse_reduce_norm import FuseReduceNorm
from passes.place_reductions import PlaceReductions
from passes.regroup_sums import RegroupSums
from passes.schedule_collectives import ScheduleCollectives
from passes.shard_rows import ShardRows
from passes.unshard_rows import UnshardRows

PLANNING = (
    Canonicalize,
    CanonicalizeSlices,
    EliminateDeadCode,
    UnshardRows,
    RegroupSums,
    PlaceReductions,
    ShardRows,
)
"""What the planner runs, in this order; dead code is eliminated again after every decision."""

LOWERING = (
    DispatchRows,
    EliminateDeadCode,
    FuseReduceNorm,
    EliminateDeadCode,
    ScheduleCollectives,
)
"""What the runtime runs on a planned graph, in this order."""

__all__ = [
    "LOWERING",
    "PLANNING",
    "Canonicalize",
    "CanonicalizeSlices",
    "DispatchRows",
    "EliminateDeadCode",
    "FuseReduceNorm",
    "PlaceReductions",
    "RegroupSums",
    "ScheduleCollectives",
    "ShardRows",
    "UnshardRows",
]
