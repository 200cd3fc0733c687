"""A machine: what its collectives, memory, matrix units and launches take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from compiler.cost import collective_times
from compiler.cost.collective_times import CollectiveTime, Group, shape_of
from compiler.cost.tables import Fused, Launch, MachineError, Network, Quantity, Table
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
        """What a fused kernel takes, addition and norm included; None if nobody measured it."""
        shape = shape_of(group, self)
        time = collective_times.fused(self, Fused(kind), payload_bytes, shape, Launch(launch))
        return None if time is None else time.time_ps

    def lower_bound_ps(self, kind: Kind, payload_bytes: int, group: Group) -> int:
        """Bytes each rank must move, by link rate: no algorithm is faster."""
        return collective_times.lower_bound_ps(self, kind, payload_bytes, shape_of(group, self))
