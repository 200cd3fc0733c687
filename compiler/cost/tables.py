"""What a machine file holds: quantities with sources, tables of collectives, a network."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from compiler.cost.regimes import Curve
from compiler.errors import CommPlanError
from compiler.ir.collectives import Kind

BYTES_PER_US, FLOP_PER_US, NS = "bytes/us", "FLOP/us", "ns"


class MachineError(CommPlanError):
    """A machine that is not known, a machine file that cannot be used, or a number it lacks."""


class Launch(StrEnum):
    """How kernels reach the GPU: one by one from the host, or as a CUDA graph."""

    EAGER = "eager"
    GRAPH = "graph"


class LibraryClass(StrEnum):
    """Who implements a collective.

    NCCL: one kernel per call, any rank count. CUSTOM: the kernels of a serving framework over
    peer memory (one-shot, two-shot, multimem, chosen by payload as the framework does, and NCCL
    beyond them), for the rank counts that were measured only.
    """

    NCCL = "nccl"
    CUSTOM = "custom"
    GLOO = "gloo"


class Fused(StrEnum):
    """Kernels that do a collective and the work around it."""

    ALL_REDUCE_ADD_NORM = "all_reduce+add+norm"
    REDUCE_SCATTER_ADD_NORM_ALL_GATHER = "reduce_scatter+add+norm+all_gather"


@dataclass(frozen=True)
class Quantity:
    """A number with its unit, and where it comes from."""

    value: int
    unit: str
    source: str


@dataclass(frozen=True)
class Table:
    """Times of one kind of collective (or fused kernel) on one rank count, by one library.

    Attributes:
        kind: what runs.
        ranks: ranks of the group, all inside a node.
        library: name and version.
        library_class: who implements it.
        launches: how it may be launched at these times.
        curve: time by payload bytes, the larger of operand and result on one rank.
        min_bytes: the smallest payload that was measured.
        max_bytes: the largest.
        source: where the measurements are published.
        median_error: of the curve on its measurements, as a share; None if derived.
        maximum_error: likewise the largest one above 1 MiB.
        derived: how the curve was made if not from measurements of this table, else empty.
    """

    kind: Kind | Fused
    ranks: int
    library: str
    library_class: LibraryClass
    launches: tuple[Launch, ...]
    curve: Curve
    min_bytes: int
    max_bytes: int
    source: str
    median_error: float | None = None
    maximum_error: float | None = None
    derived: str = ""


@dataclass(frozen=True)
class Protocol:
    """One way over a network: t = base + steps * step + wire bytes / bandwidth."""

    name: str
    base_ps: int
    step_ps: int
    bytes_per_us: int


@dataclass(frozen=True)
class Network:
    """What connects nodes.

    Attributes:
        link: line rate of one rank's adapter, each way.
        protocols: the ways over it; the fastest one is taken.
        source: where the protocols' numbers come from.
    """

    link: Quantity
    protocols: tuple[Protocol, ...]
    source: str
