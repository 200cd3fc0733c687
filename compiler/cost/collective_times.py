"""What a collective takes on a machine: the best library, rank counts between tables, two levels.

Inside a node a table is looked up. Rank counts without a table are derived from two that have one
by the ring law, for NCCL only: the custom kernels exist for the counts they were written for.
Beyond a node, every rank exchanges with the ranks of its place in the other nodes, r of them per
node at a time, over N nodes:

    reduce_scatter(m) = node.reduce_scatter(m) + network.reduce_scatter(m / r)
    all_gather(m)     = network.all_gather(m / r) + node.all_gather(m)
    all_reduce(m)     = node.reduce_scatter(m) + network.all_reduce(m / r) + node.all_gather(m)
    all_to_all(m)     = node.all_to_all(m) + network.all_to_all(m)

and a phase over the network is a ring, with s = N - 1 steps and s / N of the phase's payload on the
wire (twice both for all_reduce). An all_reduce never takes longer than a reduce_scatter and an
all_gather, since it can be done that way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from compiler.cost.regimes import ring_law
from compiler.cost.tables import Fused, Launch, LibraryClass, MachineError, Table
from compiler.cost.units import FS_PER_PS, FS_PER_US, PS_PER_US
from compiler.ir.collectives import Kind

if TYPE_CHECKING:
    from compiler.cost.machine import Machine


class Shape(NamedTuple):
    """How a group lies over nodes: ``ranks_per_node`` ranks in each of ``nodes`` nodes."""

    ranks_per_node: int
    nodes: int

    @property
    def ranks(self) -> int:
        """Ranks of the group."""
        return self.ranks_per_node * self.nodes


Group = Sequence[Sequence[int]] | tuple[int, int]
"""Replica groups as ranks, or (ranks per node, nodes)."""


@dataclass(frozen=True)
class Phase:
    """A part of a collective that one library does at one level.

    Attributes:
        kind: what it does.
        level: "node" or "network".
        ranks: ranks that take part in one exchange.
        payload_bytes: the larger of operand and result on one rank.
        time_ps: how long it takes.
        library: name and version; the network's protocol there.
        library_class: who implements it.
        from_bytes: where the regime starts that the payload falls in.
        alpha_ps: its latency.
        beta_fs_per_byte: its inverse bandwidth.
        source: where the numbers come from.
        derived: how they were derived if nobody measured them, else empty.
    """

    kind: Kind | Fused
    level: str
    ranks: int
    payload_bytes: int
    time_ps: int
    library: str
    library_class: LibraryClass
    from_bytes: int
    alpha_ps: int
    beta_fs_per_byte: int
    source: str
    derived: str


@dataclass(frozen=True)
class CollectiveTime:
    """The phases of a collective, one after the other."""

    phases: tuple[Phase, ...]

    @property
    def time_ps(self) -> int:
        """How long they take together."""
        return sum(phase.time_ps for phase in self.phases)


def shape_of(group: Group, machine: Machine) -> Shape:
    """How a group lies over the machine's nodes.

    Raises:
        MachineError: members are spread unevenly over nodes, or there are several nodes and no
            network.
    """
    pair = [one for one in group if isinstance(one, int)]
    shapes = {_spread(tuple(one), machine) for one in group if not isinstance(one, int)}
    if len(shapes) > 1:
        raise MachineError(
            "the replica groups lie differently over nodes",
            found=f"(ranks per node, nodes): {sorted(map(tuple, shapes))}",
            remedy="ask for each group of ranks by itself",
        )
    shape = shapes.pop() if shapes else Shape(*pair)
    if not 1 <= shape.ranks_per_node <= machine.ranks_per_node or shape.nodes < 1:
        raise MachineError(
            f"no such group on machine {machine.name!r}",
            found=f"{shape.ranks_per_node} ranks per node on {shape.nodes} nodes",
            remedy=f"a node has {machine.ranks_per_node} ranks",
        )
    if shape.nodes > 1 and machine.network is None:
        raise MachineError(
            f"machine {machine.name!r} is one node of {machine.ranks_per_node} ranks",
            found=f"a group of {shape.ranks} ranks on {shape.nodes} nodes",
            remedy="name a machine with a network, such as h200x8-ib400",
        )
    return shape


def _spread(members: tuple[int, ...], machine: Machine) -> Shape:
    counts = Counter(rank // machine.ranks_per_node for rank in members)
    if len(set(counts.values())) != 1:
        raise MachineError(
            "a group has more ranks on one node than on another",
            where=f"ranks {list(members)} on nodes of {machine.ranks_per_node}",
            found=f"ranks per node: {dict(sorted(counts.items()))}",
            remedy="choose mesh axes that divide, or are divided by, the ranks of a node",
        )
    return Shape(next(iter(counts.values())), len(counts))


PHASES = {
    Kind.ALL_REDUCE: (
        ("node", Kind.REDUCE_SCATTER),
        ("network", Kind.ALL_REDUCE),
        ("node", Kind.ALL_GATHER),
    ),
    Kind.REDUCE_SCATTER: (("node", Kind.REDUCE_SCATTER), ("network", Kind.REDUCE_SCATTER)),
    Kind.ALL_GATHER: (("network", Kind.ALL_GATHER), ("node", Kind.ALL_GATHER)),
    Kind.ALL_TO_ALL: (("node", Kind.ALL_TO_ALL), ("network", Kind.ALL_TO_ALL)),
}
"""What is done at which level, beyond a node."""


@lru_cache(maxsize=1 << 14)
def collective(
    machine: Machine, kind: Kind, payload_bytes: int, shape: Shape, launch: Launch
) -> CollectiveTime:
    """``Machine.collective``, of a group that lies over nodes like this."""
    assert payload_bytes >= 0, f"payload of {payload_bytes} bytes"
    if shape.ranks == 1:
        return CollectiveTime(())
    time = CollectiveTime(tuple(_phases(machine, kind, payload_bytes, shape, launch)))
    halves = (Kind.REDUCE_SCATTER, Kind.ALL_GATHER)
    measured = {table.kind for table in machine.tables}.issuperset(halves)
    if kind is not Kind.ALL_REDUCE or not (measured or shape.ranks_per_node == 1):
        return time
    parts = [collective(machine, half, payload_bytes, shape, launch) for half in halves]
    split = CollectiveTime(tuple(phase for part in parts for phase in part.phases))
    return min(time, split, key=lambda each: each.time_ps)


def _phases(
    machine: Machine, kind: Kind, payload_bytes: int, shape: Shape, launch: Launch
) -> Iterator[Phase]:
    if shape.nodes > 1 and kind not in PHASES:
        raise _unknown(machine, kind, shape.ranks, launch)
    share = payload_bytes if kind is Kind.ALL_TO_ALL else -(-payload_bytes // shape.ranks_per_node)
    for level, part in PHASES[kind] if shape.nodes > 1 else (("node", kind),):
        if level == "network":
            yield _between(machine, part, share, shape.nodes)
        elif shape.ranks_per_node > 1:
            yield _in_node(machine, part, payload_bytes, shape.ranks_per_node, launch)


def _in_node(
    machine: Machine, kind: Kind | Fused, payload_bytes: int, ranks: int, launch: Launch
) -> Phase:
    tables = _candidates(machine, kind, ranks, launch)
    if not tables:
        raise _unknown(machine, kind, ranks, launch)
    best = min(tables, key=lambda table: table.curve.time_ps(payload_bytes))
    regime = best.curve.regime(payload_bytes)
    outside = not best.min_bytes <= payload_bytes <= best.max_bytes
    measured = f"payloads of {best.min_bytes} to {best.max_bytes} bytes were measured"
    notes = [best.derived, measured if outside else ""]
    return Phase(
        kind, "node", ranks, payload_bytes, regime.time_ps(payload_bytes), best.library,
        best.library_class, regime.from_bytes, regime.alpha_ps, regime.beta_fs_per_byte,
        best.source, "; ".join(note for note in notes if note),
    )  # fmt: skip


@lru_cache(maxsize=1 << 10)
def _candidates(
    machine: Machine, kind: Kind | Fused, ranks: int, launch: Launch
) -> tuple[Table, ...]:
    """Tables of this rank count; without one, NCCL's derived from two others."""
    measured = tuple(t for t in machine.tables_of(kind, ranks) if launch in t.launches)
    if measured:
        return measured
    general = {
        t.ranks: t
        for t in machine.tables
        if t.kind is kind and launch in t.launches and t.library_class is not LibraryClass.CUSTOM
    }
    if len(general) < 2 or not min(general) < ranks <= 2 * max(general):
        return ()
    above = min((n for n in general if n > ranks), default=max(general))
    below = max(n for n in general if n < above)
    neighbours = (below, general[below].curve), (above, general[above].curve)
    return (
        replace(
            general[above],
            ranks=ranks,
            curve=ring_law(neighbours, ranks),
            median_error=None,
            maximum_error=None,
            derived=f"ring law from the tables of {below} and {above} ranks, not measured",
        ),
    )


def _between(machine: Machine, kind: Kind, payload_bytes: int, nodes: int) -> Phase:
    """A ring over the network."""
    assert machine.network is not None, "several nodes have a network"
    steps = (nodes - 1) * (2 if kind is Kind.ALL_REDUCE else 1)
    lines = [
        (p.base_ps + steps * p.step_ps, steps * FS_PER_US // (nodes * p.bytes_per_us), p.name)
        for p in machine.network.protocols
    ]
    time_ps, (alpha_ps, beta, name) = min(
        (line[0] + line[1] * payload_bytes // FS_PER_PS, line) for line in lines
    )
    return Phase(
        kind, "network", nodes, payload_bytes, time_ps, name, LibraryClass.NCCL, 0, alpha_ps,
        beta, machine.network.source, "a ring by NCCL's constants, not measured",
    )  # fmt: skip


def _unknown(machine: Machine, kind: Kind | Fused, ranks: int, launch: Launch) -> MachineError:
    tables = [t for t in machine.tables if t.kind is kind and launch in t.launches]
    rank_counts = sorted({t.ranks for t in tables})
    return MachineError(
        f"machine {machine.name!r} does not tell what {kind} over {ranks} ranks takes",
        found=f"tables ({launch}) of {', '.join(map(str, rank_counts)) or 'no'} ranks",
        remedy="measure it: torchrun --nproc-per-node N --no-python commplan machine measure",
    )


def fused(
    machine: Machine, kind: Fused, payload_bytes: int, shape: Shape, launch: Launch
) -> CollectiveTime | None:
    """What a fused kernel takes, norm and addition included.

    Returns:
        None where no measurement was published: for this machine, rank count or launch, or a
        payload outside the range that was measured. Fused kernels are never extrapolated.
    """
    tables = machine.tables_of(kind, shape.ranks) if shape.nodes == 1 else ()
    ranges = [(t.min_bytes, t.max_bytes) for t in tables if launch in t.launches]
    if not any(least <= payload_bytes <= most for least, most in ranges):
        return None
    return CollectiveTime((_in_node(machine, kind, payload_bytes, shape.ranks, launch),))


def lower_bound_ps(machine: Machine, kind: Kind, payload_bytes: int, shape: Shape) -> int:
    """Time below which no algorithm can be: bytes each rank must move, by link rate.

    Inside a node of r ranks (r - 1) / r of the payload, each way; all_reduce twice that, or the
    payload once each way where the switch adds. Between N nodes, whose ranks share the work,
    (N - 1) / N of the payload per node, all_reduce twice, all_to_all for each of its ranks.

    Raises:
        MachineError: the machine does not state its link.
    """
    inside, nodes = shape
    twice = 2 if kind is Kind.ALL_REDUCE else 1
    bound_ps = 0
    if inside > 1:
        wire = twice * (inside - 1) * payload_bytes // inside
        if kind is Kind.ALL_REDUCE and machine.in_switch_reduction:
            wire = min(wire, payload_bytes)
        link = machine.known(machine.link, "the rate of its links").value
        bound_ps = wire * PS_PER_US // link
    if nodes > 1:
        assert machine.network is not None, "several nodes have a network"
        per_rank = payload_bytes if kind is Kind.ALL_TO_ALL else payload_bytes // inside
        wire = twice * (nodes - 1) * per_rank // nodes
        bound_ps = max(bound_ps, wire * PS_PER_US // machine.network.link.value)
    return bound_ps
