"""What tracers give: a functional graph, its inputs and results, and the sizes that it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._sympy.value_ranges import ValueRanges

from compiler.capture.python_reads import Reads
from compiler.capture.pytrees import Structure
from compiler.ir import access
from compiler.ir.coalesced import separate
from compiler.ir.placement import Placement

Cut = Mapping[str, tuple[tuple[str, Placement], ...]]
"""Key of a DTensor -> per dimension of its device mesh, the process group and the placement."""

CHECKS = {torch.ops.aten._assert_tensor_metadata.default}
"""Ops that tracers leave out: they repeat what is already known of their operand."""


class StateKind(StrEnum):
    """What a lifted tensor is to the model."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    TRANSIENT = "non-persistent buffer"
    CONSTANT = "constant"


@dataclass(frozen=True)
class State:
    """A tensor of the model that became an input of the graph.

    Attributes:
        kind: what it is to the model.
        key: its dotted name in the model; for parameters and persistent buffers, the key in its
            state_dict.
        tensor: the tensor; the local shard where the model holds a DTensor.
    """

    kind: StateKind
    key: str
    tensor: torch.Tensor

    def unused_name(self, taken: Iterable[str]) -> str:
        """Return a name for its placeholder that is not among ``taken``."""
        letter = {StateKind.PARAMETER: "p", StateKind.CONSTANT: "c"}.get(self.kind, "b")
        return unused(f"{letter}_{''.join(c if c.isalnum() else '_' for c in self.key)}", taken)


@dataclass(frozen=True)
class Fixed:
    """A leaf of arguments or results that is not a tensor: the value the graph was traced with."""

    value: Any


@dataclass(frozen=True, kw_only=True)
class GraphCall:
    """How a graph stands for a call of the model.

    Attributes:
        arguments: per leaf of the arguments, its placeholder, or the constant it was traced with.
        cached: placeholders of arguments that are parts of caches.
        mutations: graph output -> placeholder whose tensor it is written back to.
        results: per leaf of the result, the graph output, or a constant.
        out_spec: structure of the result and of the arguments that the model updates.
        ranges: symbol of a size -> smallest and largest value; None is no limit.
        guards: what else the sizes of a call must satisfy, over the same symbols.
        reads: the Python state that the trace read; None where no Python ran.
    """

    arguments: tuple[str | Fixed, ...]
    cached: frozenset[str] = frozenset()
    mutations: Mapping[int, str] = field(default_factory=dict)
    results: tuple[int | Fixed, ...]
    out_spec: Structure
    ranges: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    guards: tuple[sympy.Basic, ...] = ()
    reads: Reads | None = None


@dataclass(frozen=True, kw_only=True)
class Traced(GraphCall):
    """A functional graph without attributes, group names as this process has them.

    Attributes:
        graph: its inputs are the model's tensors and the tensor arguments; its outputs are what is
            written back, then the computed leaves of the result.
        state: placeholder -> tensor of the model.
        cut: the model's DTensors.
    """

    graph: fx.Graph
    state: Mapping[str, State]
    cut: Cut = field(default_factory=dict)

    def __post_init__(self) -> None:
        separate(self.graph)


def unused(name: str, taken: Iterable[str]) -> str:
    """Return ``name``, numbered if it is among ``taken``."""
    names, unused_name, count = set(taken), name, 0
    while unused_name in names:
        count += 1
        unused_name = f"{name}_{count}"
    return unused_name


def symbolic_sizes(trace: Traced) -> list[torch.SymInt]:
    """Return the symbolic sizes of the tensor arguments."""
    arguments = {x for x in trace.arguments if isinstance(x, str)}
    nodes = access.node_of(trace.graph, "placeholder")
    shapes = (access.shape(n) for n in nodes if n.target in arguments and access.is_tensor(n))
    return [size for shape in shapes for size in shape if isinstance(size, torch.SymInt)]


def guards_of(trace: Traced) -> tuple[sympy.Basic, ...]:
    """Return the conditions on sizes under which the trace took the path it took."""
    sizes = symbolic_sizes(trace)
    if not sizes:
        return ()
    bound = {symbol for size in sizes for symbol in size.node.expr.free_symbols}
    env = sizes[0].node.shape_env
    # A size found equal to another since then is called by that one's name.
    guards = dict.fromkeys(env.replace(guard.expr) for guard in env.guards)
    return tuple(g for g in guards if g.free_symbols and g.free_symbols <= bound)


def narrowed(trace: Traced, guards: Sequence[sympy.Basic]) -> dict[str, tuple[int, int | None]]:
    """Return the ranges of ``trace``, ended where a guard on one symbol fails.

    Values may hold what the guard specialized: a loop that ran once because ``(s + 63) // 64`` was
    1 is that of at most 64. The ranges of the graph's symbols, which the checker reads, end too.
    """
    ranges = dict(trace.ranges)
    for size in symbolic_sizes(trace):
        symbol = size.node.expr
        if str(symbol) not in ranges:
            continue
        lower, upper = ranges[str(symbol)]
        own = [g for g in guards if g.free_symbols == {symbol}]
        last = min((x for g in own if (x := _last(g, symbol, int(size.node.hint)))), default=0)
        if last and (upper is None or last < upper):
            ranges[str(symbol)] = lower, last
            size.node.shape_env.constrain_symbol_range(symbol, lower, last)
    return ranges


def size_range(bounds: ValueRanges[sympy.Expr]) -> tuple[int, int | None]:
    """Return the least and greatest size within a symbol's bounds; None: no limit.

    PyTorch's infinite integers call themselves finite, and are not of ``sympy.Integer``.
    """
    lower, upper = bounds.lower, bounds.upper
    return (
        int(lower) if isinstance(lower, sympy.Integer) else 0,
        int(upper) if isinstance(upper, sympy.Integer) else None,
    )


FAR = 2**24


def _last(guard: sympy.Basic, symbol: sympy.Symbol, hint: int) -> int | None:
    """Return about the last value from ``hint`` on at which ``guard`` holds; None: it has no end.

    Multiples of ``hint`` are tried, which satisfy what it does of remainders.
    """
    holds: Callable[[int], bool] = lambda n: bool(guard.subs(symbol, n) == True)  # noqa: E712, E731
    low = max(hint, 1)
    while low < FAR and holds(2 * low):
        low *= 2
    if low >= FAR:
        return None
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
