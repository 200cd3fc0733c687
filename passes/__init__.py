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

CANONICALIZING = (Canonicalize, CanonicalizeSlices, EliminateDeadCode)
"""What the planner runs on every graph."""

REGROUPING = (UnshardRows, RegroupSums)
"""Before decisions, if there are any: UnshardRows for each group of ranks that share rows."""

PLACING = (PlaceReductions, EliminateDeadCode)
"""For every placement of a reduction."""

SHARDING = (ShardRows, EliminateDeadCode)
"""For every choice of rows that a group of ranks shares."""

PLANNING = (*CANONICALIZING, *REGROUPING, *PLACING, *SHARDING)
"""What the planner runs, in this order."""

LOWERING = (
    DispatchRows,
    EliminateDeadCode,
    FuseReduceNorm,
    EliminateDeadCode,
    ScheduleCollectives,
)
"""What the runtime runs on a planned graph, in this order."""

__all__ = [
    "CANONICALIZING",
    "LOWERING",
    "PLACING",
    "PLANNING",
    "REGROUPING",
    "SHARDING",
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
