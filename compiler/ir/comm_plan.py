"""CommPlan: assignments exported as numbers of values. The same on every rank.

A number is that of the printed graph. See ``compiler.plan.export``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from compiler.ir.collectives import Kind


@dataclass(frozen=True)
class PlacedReduction:
    """One reduction of the planned graph.

    Attributes:
        value: number of the value that is reduced, in the graph the stage applies to.
        op: what computes that value.
        layer: dotted path of the module it comes from.
        payload_bytes: bytes of the value on one rank, at the planned token count.
        merges: how many reductions of the source it stands for.
    """

    value: int
    op: str
    layer: str
    payload_bytes: int
    merges: int


@dataclass(frozen=True)
class Stage:
    """Placement of one reduction (replica groups and kind).

    Attributes:
        group: group name.
        kind: ``sum``, ``avg``, ``max``, ``min`` or ``product``.
        unreduced: numbers of the values that are Partial: computed before their reduction.
        reductions: where its collectives stand afterwards.
        before: number of collectives of this reduction in the source.
        before_payload_bytes: their payload.
        scatters: the collectives are reduce_scatters, not all_reduces.
        widen: reductions may cross widening casts.
        join: all_reduces may run over groups of ranks that the mesh has no name for yet.
    """

    group: str
    kind: str
    unreduced: tuple[int, ...]
    reductions: tuple[PlacedReduction, ...]
    before: int
    before_payload_bytes: int
    scatters: bool = False
    widen: bool = False
    join: bool = True

    @property
    def collective(self) -> Kind:
        """Return the collective that does the reduction."""
        return Kind.REDUCE_SCATTER if self.scatters else Kind.ALL_REDUCE


@dataclass(frozen=True)
class RowStage:
    """Which values the ranks of a group hold as shares of rows.

    Attributes:
        group: group name.
        shares: numbers of the values, in the graph the stage applies to.
        reduce_scatters: how many all_reduces become one.
        all_gathers: how many values are gathered where all rows are read.
        dispatches: numbers of the partial sums for which ranks send each other rows, instead of
            gathering all and adding up with a reduce_scatter.
    """

    group: str
    shares: tuple[int, ...]
    reduce_scatters: int
    all_gathers: int
    dispatches: tuple[int, ...] = ()


@dataclass(frozen=True)
class CommPlan:
    """Stages in the order in which they apply; each numbers the graph the one before left.

    Attributes:
        policy: what the planner was allowed to do.
        tokens: value of symbolic sizes that payloads were counted at, None for their hints.
        stages: one per reduction of the graph.
        rows: one per group that shares rows, after all reductions are placed.
    """

    policy: str
    tokens: int | None
    stages: tuple[Stage, ...] = ()
    rows: tuple[RowStage, ...] = ()

    def to_json(self) -> str:
        """Return the plan as one JSON object, keys in a fixed order."""
        return json.dumps(asdict(self), indent=1)

    @property
    def digest(self) -> str:
        """Return the hash that ranks compare before they run the plan."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()
