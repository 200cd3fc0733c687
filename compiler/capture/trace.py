"""What tracers get, the call of a model on tensors alone, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._sympy.value_ranges import ValueRanges

from compiler.capture.call_form import Arguments, CallForm, check_leaf
from compiler.capture.declared_placements import Cut
from compiler.capture.lift_state import LiftedGraph
from compiler.capture.model_call import OnTensors, Outcome, is_tensor, with_leaves
from compiler.capture.python_reads import Reads
from compiler.capture.pytrees import Structure
from compiler.errors import CaptureError
from compiler.ir import access


@dataclass(frozen=True)
class Traced:
    """A traced model, group names as this process has them.

    Attributes:
        lifted: the graph; its arguments and results are the leaves of the trees.
        out_spec: structure of the result and of the arguments that the model updates.
        ranges: symbol of a size -> its smallest and largest value (None: no limit).
        guards: what else the sizes of a call must satisfy.
        cut: the model's DTensors.
        reads: the Python state that the trace read; None where no Python ran.
    """

    lifted: LiftedGraph
    out_spec: Structure
    ranges: Mapping[str, tuple[int, int | None]]
    guards: tuple[sympy.Basic, ...]
    cut: Cut = field(default_factory=dict)
    reads: Reads | None = None


@dataclass(frozen=True)
class TensorCall:
    """A call of a model as tracers make it: on tensors alone.

    Attributes:
        model: the model.
        given: the leaves of the arguments.
        names: of the tensors among them.
        tensors: what to trace with, one for each.
        module: takes the tensors and returns the computed leaves of the result.
        outcome: where it leaves the result.
    """

    model: nn.Module
    given: Arguments
    names: tuple[str, ...]
    tensors: list[torch.Tensor]
    module: nn.Module
    outcome: Outcome

    @staticmethod
    def of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TensorCall:
        """The call of ``model`` with these arguments.

        Raises:
            CaptureError: the arguments do not fit the model, or none is a tensor.
        """
        form = CallForm.of(model)
        arguments = form.flatten(args, kwargs)
        named = tuple(zip(form.names(arguments), arguments.leaves, strict=True))
        for name, leaf in named:
            check_leaf(f"argument {name!r}", leaf)
        names = tuple(name for name, leaf in named if is_tensor(leaf))
        if not names:
            raise CaptureError(
                "a call without tensor arguments has nothing to capture",
                found=", ".join(f"{name}={leaf!r}" for name, leaf in named) or "no arguments",
                remedy="pass at least one tensor, such as the token ids",
            )
        tensors = _in_mode_of(model, [_plain(x) for x in arguments.leaves if is_tensor(x)])
        outcome = Outcome(Reads(model))
        return TensorCall(
            model, arguments, names, tensors, OnTensors(model, arguments, outcome), outcome
        )

    def traced(self, lifted: LiftedGraph, ranges: Mapping[str, tuple[int, int | None]]) -> Traced:
        """The trace whose graph, of ``module``, is ``lifted``.

        Raises:
            CaptureError: the forward changed Python state that it read.
        """
        self.outcome.reads.settle()
        whole = with_leaves(lifted, self.given, self.outcome)
        guards = guards_of(whole)
        ranges = _narrowed(whole, ranges, guards)
        return Traced(whole, self.outcome.spec, ranges, guards, reads=self.outcome.reads)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor like this one that is contiguous and no view: export reads its type alone.

    The runtime passes contiguous tensors, too, so that one graph serves all strides.
    """
    if tensor.is_contiguous() and not tensor._is_view():
        return tensor
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _in_mode_of(model: nn.Module, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """``tensors`` as fake ones if the model's own are, since the two kinds do not mix."""
    own = (t for t in (*model.parameters(), *model.buffers()) if isinstance(t, FakeTensor))
    if (fake := next(own, None)) is None:
        return tensors
    mode = fake.fake_mode
    return [t if isinstance(t, FakeTensor) else mode.from_tensor(t) for t in tensors]


def guards_of(lifted: LiftedGraph) -> tuple[sympy.Basic, ...]:
    """Conditions on sizes under which the trace took the path it took."""
    arguments = [x for x in lifted.arguments if isinstance(x, str)]
    shapes = [
        size
        for node in access.node_of(lifted.graph, "placeholder")
        if node.target in arguments and access.is_tensor(node)
        for size in access.shape(node)
        if isinstance(size, torch.SymInt)
    ]
    if not shapes:
        return ()
    bound = {symbol for size in shapes for symbol in size.node.expr.free_symbols}
    env = shapes[0].node.shape_env
    # A size found equal to another since then is called by that one's name.
    guards = dict.fromkeys(env.replace(guard.expr) for guard in env.guards)
    return tuple(g for g in guards if g.free_symbols and g.free_symbols <= bound)


def _narrowed(
    lifted: LiftedGraph, ranges: Mapping[str, tuple[int, int | None]], guards: Sequence[sympy.Basic]
) -> dict[str, tuple[int, int | None]]:
    """``ranges``, ended where a guard on one symbol fails: values may hold what it specialized.

    A loop that ran once because ``(s + 63) // 64`` was 1 is that of at most 64. The symbols of the
    graph are told, whose ranges are what its checker reads.
    """
    narrowed = dict(ranges)
    for node in access.node_of(lifted.graph, "placeholder"):
        sizes = access.shape(node) if access.is_tensor(node) else ()
        for size in (size for size in sizes if isinstance(size, torch.SymInt)):
            symbol = size.node.expr
            if str(symbol) not in narrowed:
                continue
            lower, upper = narrowed[str(symbol)]
            own = [g for g in guards if g.free_symbols == {symbol}]
            last = min((x for g in own if (x := _last(g, symbol, int(size.node.hint)))), default=0)
            if last and (upper is None or last < upper):
                narrowed[str(symbol)] = lower, last
                size.node.shape_env.constrain_symbol_range(symbol, lower, last)
    return narrowed


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
    """The last value from ``hint`` on, about, up to which ``guard`` holds; None if it does not end.

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
