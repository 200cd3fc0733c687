"""Statistics of a graph's collectives: how many, of what kind, how many payload bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from compiler.ir import access
from compiler.ir.collectives import Kind, collectives


@dataclass(frozen=True)
class CountedCollective:
    """One collective of a graph.

    Attributes:
        kind: what it does.
        group: the group name as written.
        op: the reduction, empty if it does not reduce.
        layer: dotted path of the module its operand comes from.
        payload_bytes: bytes of the larger of operand and result on one rank.
    """

    kind: Kind
    group: str
    op: str
    layer: str
    payload_bytes: int


@dataclass(frozen=True)
class Statistics:
    """All collectives of a graph, in program order."""

    collectives: tuple[CountedCollective, ...]

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Kind -> number of collectives."""
        return dict(Counter(str(c.kind) for c in self.collectives))

    @property
    def all_reduces(self) -> int:
        """Number of all_reduces."""
        return self.counts.get(Kind.ALL_REDUCE, 0)

    @property
    def payload_bytes(self) -> int:
        """Payload of all collectives together."""
        return sum(c.payload_bytes for c in self.collectives)


def statistics(graph: fx.Graph, tokens: int | None = None) -> Statistics:
    """Counts the collectives of ``graph``; symbolic sizes count as ``tokens`` or their hints."""
    return Statistics(
        tuple(
            CountedCollective(
                kind=communication.kind,
                group=communication.group,
                op=communication.op,
                layer=access.layer_path(communication.operand),
                payload_bytes=max(
                    access.payload_bytes(communication.operand, tokens),
                    access.payload_bytes(node, tokens),
                ),
            )
            for node, communication in collectives(graph)
        )
    )
