"""A machine: what its collectives, memory, matrix units and launches take."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from compiler.cost import collective_times
from compiler.cost.collective_times import CollectiveTime, Group, in_node, shape_of
from compiler.cost.tables import Fused, Launch, MachineError, Network, Quantity, Table
from compiler.cost.units import PS_PER_US
from compiler.ir.collectives import Kind

NS_TO_PS = 1000


@dataclass(frozen=True, eq=False)
class Machine:
    """One machine. Equal to itself alone.

    Attributes:
        name: as on the command line.
        title: what it is.
        ranks_per_node: ranks that reach each other without a network; consecutive numbers.
        in_switch_reduction: whether the switch between them can add.
        link: what one rank can send to others of its node, each way.
        memory: bytes a kernel can read and write.
        matmul: per element type, floating-point operations of matrix products.
        launch: per way of launching, what one kernel takes beside its work.
        tables: measured collectives and fused kernels.
        network: what connects nodes, None for one node.
        device: what the driver calls its GPUs, if that names this machine alone.
    """

    name: str
    title: str
    ranks_per_node: int
    in_switch_reduction: bool
    link: Quantity | None
    memory: Quantity | None
    matmul: Mapping[str, Quantity]
    launch: Mapping[Launch, Quantity]
    tables: tuple[Table, ...] = field(repr=False)
    network: Network | None = None
    device: str = ""

    @cached_property
    def digest(self) -> str:
        """Of the tables, which choose kernels: ranks must have the same."""
        return hashlib.blake2b(repr(self.tables).encode(), digest_size=16).hexdigest()

    def tables_of(self, kind: Kind | Fused, ranks: int) -> tuple[Table, ...]:
        """The tables of a kind and rank count, none if it was not measured."""
        return tuple(table for table in self.tables if (table.kind, table.ranks) == (kind, ranks))

    def known(self, quantity: Quantity | None, what: str) -> Quantity:
        """``quantity``.

        Raises:
            MachineError: the machine file does not have it.
        """
        if quantity is None:
            raise MachineError(
                f"machine {self.name!r} does not state {what}",
                remedy="add it to the machine file with its source, or measure the machine",
            )
        return quantity

    def launch_ps(self, launch: Launch | str) -> int:
        """What one kernel takes beside its work, in picoseconds."""
        quantity = self.launch.get(Launch(launch))
        return self.known(quantity, f"the cost of a launch ({launch})").value * NS_TO_PS

    def matmul_flop_per_us(self, dtype: torch.dtype) -> int:
        """Floating-point operations per microsecond in matrix products of ``dtype``."""
        name = str(dtype).removeprefix("torch.")
        return self.known(self.matmul.get(name), f"a matmul rate for {name}").value

    @property
    def memory_bytes_per_us(self) -> int:
        """Bytes per microsecond that a kernel reads and writes."""
        return self.known(self.memory, "a memory bandwidth").value

    def collective(
        self, kind: Kind, payload_bytes: int, group: Group, *, launch: Launch | str
    ) -> CollectiveTime:
        """What the best available library takes, phase by phase, with sources.

        Args:
            kind: the collective.
            payload_bytes: the larger of operand and result on one rank, >= 0.
            group: replica groups as lists of ranks, or (ranks per node, nodes).
            launch: eager or in a CUDA graph.

        Raises:
            MachineError: nothing is known about this kind, rank count or launch.
        """
        shape = shape_of(group, self)
        return collective_times.collective(self, Kind(kind), payload_bytes, shape, Launch(launch))

    def collective_time_ps(
        self, kind: Kind, payload_bytes: int, group: Group, *, launch: Launch | str
    ) -> int:
        """The time of ``collective``, in picoseconds; it never falls with the payload."""
        return self.collective(kind, payload_bytes, group, launch=launch).time_ps

    def fused_time_ps(
        self, kind: Fused, payload_bytes: int, group: Group, *, launch: Launch | str
    ) -> int | None:
        """What a fused kernel takes, addition and norm included.

        None where no measurement was published: for this machine, rank count or launch, or a
        payload outside the range that was measured. Fused kernels are never extrapolated.
        """
        ranks, nodes = shape_of(group, self)
        tables = self.tables_of(Fused(kind), ranks) if nodes == 1 else ()
        ranges = [(t.min_bytes, t.max_bytes) for t in tables if launch in t.launches]
        if not any(least <= payload_bytes <= most for least, most in ranges):
            return None
        return in_node(self, Fused(kind), payload_bytes, ranks, Launch(launch)).time_ps

    def lower_bound_ps(self, kind: Kind, payload_bytes: int, group: Group) -> int:
        """Time below which no algorithm can be: bytes each rank must move, by link rate.

        Inside a node of r ranks (r - 1) / r of the payload, each way; all_reduce twice that, or the
        payload once each way where the switch adds. Between N nodes, whose ranks share the work,
        (N - 1) / N of the payload per node, all_reduce twice, all_to_all for each of its ranks.

        Raises:
            MachineError: the machine does not state its link.
        """
        inside, nodes = shape_of(group, self)
        twice = 2 if kind is Kind.ALL_REDUCE else 1
        bound_ps = 0
        if inside > 1:
            wire = twice * (inside - 1) * payload_bytes // inside
            if kind is Kind.ALL_REDUCE and self.in_switch_reduction:
                wire = min(wire, payload_bytes)
            bound_ps = wire * PS_PER_US // self.known(self.link, "the rate of its links").value
        if nodes > 1:
            assert self.network is not None, "several nodes have a network"
            per_rank = payload_bytes if kind is Kind.ALL_TO_ALL else payload_bytes // inside
            wire = twice * (nodes - 1) * per_rank // nodes
            bound_ps = max(bound_ps, wire * PS_PER_US // self.network.link.value)
        return bound_ps
