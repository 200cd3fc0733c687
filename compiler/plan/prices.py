"""What the planner compares: times on a machine, or bytes where no machine is known."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import fx

from compiler.analysis.row_shards import rows_of
from compiler.cost import Launch, Machine, Work, work
from compiler.cost.compute import evaluated
from compiler.cost.tables import Fused
from compiler.cost.units import PS_PER_US
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Kind
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import ReplicaGroups
from compiler.ir.rules.meaning import size_key, step

DISPATCH_KERNELS = 24
"""Kernels that find, pack and unpack the rows of a dispatch, and add up the results."""

HOST_WAIT_LAUNCHES = 2
"""What a wait of the host for the device is counted as: to and fro."""

WIRE = 1 << 30
"""Weight of a byte on the wire against one that an op reads or writes."""


class Prices(Protocol):
    """What work costs, in integers of one unit. They compare work of one set of replica groups."""

    def communication(
        self, kind: Kind, node: fx.Node, groups: ReplicaGroups, parts: int = 1
    ) -> int:
        """A collective whose payload is ``parts`` times the tensor of ``node``."""

    def computation(self, node: fx.Node, shares: int) -> int:
        """The op of ``node`` on one of ``shares`` equal parts of its rows."""

    def padding(self, node: fx.Node, shares: int) -> int:
        """Rows added to ``node``, so that ``shares`` ranks can share them evenly."""

    def dispatch(
        self, node: fx.Node, rows: Sequence[fx.Node], groups: ReplicaGroups, copies: Fraction
    ) -> int:
        """Rows of ``rows`` sent to ``copies`` ranks each, and those of ``node`` sent back."""

    def fused(self, kind: Fused, node: fx.Node, groups: ReplicaGroups) -> int | None:
        """A kernel that reduces ``node``, adds and normalizes; None if nobody knows."""


@dataclass(frozen=True)
class CostTerm:
    """One summand of the cost of a graph, as the methods of ``Prices`` take it.

    Attributes:
        node: its value.
        kind: the collective; None for work of this rank alone.
        groups: the ranks of the collective.
        shares: equal parts of the rows, of which one is computed.
        pads: rows are added to the value, rather than the value computed.
        rows: for an all_to_all, the values whose rows are sent; the value's are sent back.
        copies: ranks that each of these rows goes to on average.
        fused: a kernel that does what ``parts`` do, where it is known and takes less.
        parts: what the kernel stands for.
    """

    node: fx.Node
    kind: Kind | None = None
    groups: ReplicaGroups | None = None
    shares: int = 1
    pads: bool = False
    rows: tuple[fx.Node, ...] = ()
    copies: Fraction = Fraction(1)
    fused: Fused | None = None
    parts: tuple[CostTerm, ...] = ()

    def cost(self, prices: Prices) -> int:
        """Return what it costs."""
        if self.fused is not None:
            kernel = self.kernel_cost(prices)
            return self.apart(prices) if kernel is None else kernel
        if self.rows:
            assert self.groups is not None, "rows go from rank to rank"
            return prices.dispatch(self.node, self.rows, self.groups, self.copies)
        if self.kind is not None:
            assert self.groups is not None, "a collective has ranks"
            return prices.communication(self.kind, self.node, self.groups)
        if self.pads:
            return prices.padding(self.node, self.shares)
        return prices.computation(self.node, self.shares)

    def apart(self, prices: Prices) -> int:
        """What the parts of a fused kernel cost."""
        return sum(part.cost(prices) for part in self.parts)

    def kernel_cost(self, prices: Prices) -> int | None:
        """What the fused kernel costs; None where it does not run.

        It runs where what it costs is known, and no more than its parts cost.
        """
        if self.fused is None:
            return None
        assert self.groups is not None, "a fused kernel communicates"
        kernel = prices.fused(self.fused, self.node, self.groups)
        return None if kernel is None or kernel > self.apart(prices) else kernel


@dataclass(frozen=True)
class Bytes:
    """Bytes that a rank sends, then collectives, then bytes of results.

    Attributes:
        tokens: value of symbolic sizes; None for their hints.
    """

    tokens: int | None = None

    def communication(
        self, kind: Kind, node: fx.Node, groups: ReplicaGroups, parts: int = 1
    ) -> int:
        """An all_reduce sends as much as a reduce_scatter and an all_gather.

        A rank of n sends (n - 1) / n of the payload; the n is left out, it is the same for all.
        """
        payload = parts * access.payload_bytes(node, self.tokens)
        times = 2 if kind is Kind.ALL_REDUCE else 1
        return WIRE * payload * times * (groups.axis_size - 1) + 1

    def computation(self, node: fx.Node, shares: int) -> int:
        """The bytes of the result."""
        return access.payload_bytes(node, self.tokens) // shares if access.is_tensor(node) else 0

    def padding(self, node: fx.Node, shares: int) -> int:
        """Nothing is sent."""
        return 0

    def dispatch(
        self, node: fx.Node, rows: Sequence[fx.Node], groups: ReplicaGroups, copies: Fraction
    ) -> int:
        """A rank keeps the rows that it needs itself."""
        payload = sum(access.payload_bytes(x, self.tokens) for x in (node, *rows))
        return int(WIRE * payload * copies * (groups.axis_size - 1) / groups.axis_size) + 3

    def fused(self, kind: Fused, node: fx.Node, groups: ReplicaGroups) -> int | None:
        """Bytes do not tell."""
        return None


@dataclass(frozen=True)
class TensorSize:
    """A tensor's size: per dimension an int or an expression, and bytes per element."""

    sizes: tuple[Any, ...]
    itemsize: int


CostTable = tuple[tuple[CostTerm, int], ...]


@dataclass(frozen=True, eq=False)
class GraphWork:
    """What the ops of a graph do and how large its tensors are, for any number of tokens.

    Equal works and sizes are one object, so that each is evaluated once per number of tokens.
    """

    graph: SpmdGraph

    @cached_property
    def of(self) -> dict[fx.Node, Work]:
        """The work of every op that does not communicate."""
        equal: dict[Work, Work] = {}
        works = ((n, work(n)) for n in self.graph.graph.nodes if n.target not in OPS)
        return {n: equal.setdefault(done, done) for n, done in works}

    @cached_property
    def tensor_sizes(self) -> dict[fx.Node, TensorSize]:
        """The size of every tensor."""
        equal: dict[TensorSize, TensorSize] = {}
        size_of = {}
        for node in self.graph.graph.nodes:
            if access.is_tensor(node):
                tensor = access.tensor(node)
                size = TensorSize(tuple(map(size_key, tensor.shape)), tensor.dtype.itemsize)
                size_of[node] = equal.setdefault(size, size)
        return size_of

    def cost_table(self, terms: Iterable[CostTerm]) -> CostTable:
        """Return the terms, with how many of each cost the same for any number of tokens."""
        counts: dict[object, tuple[CostTerm, int]] = {}
        for term in terms:
            key = self.key(term)
            first, count = counts.get(key, (term, 0))
            counts[key] = first, count + 1
        return tuple(counts.values())

    def key(self, term: CostTerm) -> Hashable:
        """Equal for terms that cost the same, at any number of tokens."""
        if term.fused is not None:
            return term.fused, id(self.tensor_sizes[term.node]), tuple(map(self.key, term.parts))
        computes = term.kind is None and not term.pads
        work = self.of[term.node] if computes else self.tensor_sizes[term.node]
        sent = tuple(id(self.tensor_sizes[x]) for x in term.rows)
        return id(work), term.kind, term.groups, term.shares, term.pads, sent, term.copies

    @cached_property
    def hints(self) -> dict[str, int]:
        """Size symbol -> what it was when the graph was made, 1 if no size tells."""
        hints: dict[str, int] = {}
        composed: set[str] = set()
        for node in self.graph.graph.nodes:
            value = node.meta.get("val")
            for size in value.shape if isinstance(value, torch.Tensor) else (value,):
                if isinstance(size, torch.SymInt):
                    if size.node.expr.is_Symbol:
                        hints.setdefault(str(size.node.expr), access.concrete(size))
                    composed.update(map(str, size.node.expr.free_symbols))
        return {**dict.fromkeys(sorted(composed), 1), **hints}

    @cached_property
    def token_symbols(self) -> tuple[str, ...]:
        """Size symbols of what is communicated, which count tokens; of everything if nothing is."""
        waits = [n for n in self.tensor_sizes if n.target is WAIT]
        sizes = [s for n in waits for s in self.tensor_sizes[n].sizes if not isinstance(s, int)]
        symbols = {str(symbol) for size in sizes for symbol in size.free_symbols}
        return tuple(sorted(symbols or self.hints))

    @cached_property
    def steps(self) -> dict[str, int]:
        """Size symbol -> what divides it; 1 for those left out."""
        shapes = (n.meta["val"].shape for n in self.tensor_sizes if n.op == "placeholder")
        sizes = [s for shape in shapes for s in shape if isinstance(s, torch.SymInt)]
        return {str(s.node.expr): step(s) for s in sizes if s.node.expr.is_Symbol}


@dataclass(frozen=True, eq=False)
class Times:
    """Picoseconds on a machine.

    Attributes:
        machine: whose times.
        tokens: value of size symbols that count tokens; others, and all for None, have their
            hints.
        work: that of the graph whose nodes are asked for.
        launch: whether kernels are launched one by one or in a CUDA graph.
        fused_bytes: greatest payload that fused kernels take; 0: none run.
    """

    machine: Machine
    tokens: int | None
    work: GraphWork
    launch: Launch = Launch.GRAPH
    fused_bytes: int = 0

    def communication(
        self, kind: Kind, node: fx.Node, groups: ReplicaGroups, parts: int = 1
    ) -> int:
        """See ``Machine.collective``; shares of rows are padded to the size of the largest."""

        def time_ps() -> int:
            payload, n = parts * self.payload_bytes(node), groups.axis_size
            if kind is not Kind.ALL_REDUCE and parts == 1 and (rows := self.rows(node)) % n:
                payload = payload // rows * -(-rows // n) * n
            return self._communication(kind, payload, groups)

        return self._once((kind, id(self.work.tensor_sizes[node]), groups, parts), time_ps)

    def _communication(self, kind: Kind, payload_bytes: int, groups: ReplicaGroups) -> int:
        if groups.axis_size == 1:
            return 0
        return self.machine.collective_time_ps(
            kind, payload_bytes, groups.ranks, launch=self.launch
        )

    def computation(self, node: fx.Node, shares: int) -> int:
        """See ``compiler.cost.compute``."""
        done = self.work.of[node]

        def time_ps() -> int:
            sizes = self.sizes
            if shares > 1:  # of which the first rank has ceil(rows / shares)
                tokens = self.work.token_symbols
                sizes = {
                    s: -(-n // shares) * shares if s in tokens else n for s, n in sizes.items()
                }
            return done.time_ps(sizes, self.machine, shards=shares, launch=self.launch)

        return self._once((id(done), shares), time_ps)

    def padding(self, node: fx.Node, shares: int) -> int:
        """A copy of the tensor, unless it has rows for all at this number of tokens."""
        if self.rows(node) % shares == 0:
            return 0
        moved = 2 * self.payload_bytes(node) * PS_PER_US // self.machine.memory_bytes_per_us
        return moved + self.machine.launch_ps(self.launch)

    def dispatch(
        self, node: fx.Node, rows: Sequence[fx.Node], groups: ReplicaGroups, copies: Fraction
    ) -> int:
        """Counts and rows to and fro, and what packs them; the computation itself costs the same.

        In a CUDA graph every rank is sent every row.
        """
        n, graphed = groups.axis_size, self.launch is Launch.GRAPH
        copies = Fraction(n) if graphed else copies

        def time_ps() -> int:
            own = {x: -(-self.payload_bytes(x) // n) for x in (node, *rows)}
            sent, back = int(copies * sum(own[x] for x in rows)), int(copies * own[node])
            payloads = [sent, back] if graphed else [8 * n, sent, back]
            wire = sum(self._communication(Kind.ALL_TO_ALL, p, groups) for p in payloads)
            moved = 6 * sent + 2 * back + 3 * n * own[node]  # packed, unpacked; put in place, added
            launches = DISPATCH_KERNELS + (0 if graphed else HOST_WAIT_LAUNCHES)
            memory = moved * PS_PER_US // self.machine.memory_bytes_per_us
            return wire + memory + launches * self.machine.launch_ps(self.launch)

        sizes = tuple(id(self.work.tensor_sizes[x]) for x in (node, *rows))
        return self._once(("dispatch", sizes, groups, copies), time_ps)

    def fused(self, kind: Fused, node: fx.Node, groups: ReplicaGroups) -> int | None:
        """See ``Machine.fused_time_ps``; padding is the kernel's own."""
        payload = self.payload_bytes(node)
        if groups.axis_size == 1 or payload > self.fused_bytes:
            return None
        return self.machine.fused_time_ps(kind, payload, groups.ranks, launch=self.launch)

    def rows(self, node: fx.Node) -> int:
        """Number of rows of a value."""
        return evaluated(rows_of(node), tuple(self.sizes.items()))

    def payload_bytes(self, node: fx.Node) -> int:
        """Bytes of the tensor of ``node`` on one rank."""
        tensor = self.work.tensor_sizes[node]

        def payload() -> int:
            count = tensor.itemsize
            for size in tensor.sizes:
                count *= evaluated(size, tuple(self.sizes.items()))
            return count

        return self._once(id(tensor), payload)

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Size symbol -> value."""
        if self.tokens is None:
            return self.work.hints
        return self.work.hints | dict.fromkeys(self.work.token_symbols, self.tokens)

    @cached_property
    def _known(self) -> dict[object, int]:
        return {}

    def _once(self, key: object, find: Callable[[], int]) -> int:
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]


class LowerBounds(Times):
    """As ``Times``, but collectives move their bytes at the rate of the link, at once."""

    def _communication(self, kind: Kind, payload_bytes: int, groups: ReplicaGroups) -> int:
        if groups.axis_size == 1:
            return 0
        return self.machine.lower_bound_ps(kind, payload_bytes, groups.ranks)

    def fused(self, kind: Fused, node: fx.Node, groups: ReplicaGroups) -> int | None:
        """The bytes that its collectives move."""
        if super().fused(kind, node, groups) is None:
            return None
        return self._communication(Kind.ALL_REDUCE, self.payload_bytes(node), groups)
