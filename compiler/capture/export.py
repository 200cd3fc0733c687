"""Trace a model with torch.export: one functional graph whose inputs include all state.

The model is called through a wrapper that takes tensors alone, so that the trees of arguments and
results are ours to keep; the wrapper leaves no trace in names and layer paths.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.export import ExportedProgram

from compiler.capture.arguments import Arguments, CallForm, check_leaf
from compiler.capture.declared import Cut
from compiler.capture.failures import capture_error
from compiler.capture.lift import Fixed, LiftedGraph, is_spmd, lift, lift_module
from compiler.capture.modes import watched
from compiler.errors import CaptureError
from compiler.ir import access
from compiler.ir.quiet import FAKE_TENSORS, unlogged, unprinted


@dataclass(frozen=True)
class Traced:
    """A traced model, group names as this process has them.

    Attributes:
        lifted: the graph; its arguments and results are the leaves of the trees.
        in_spec: tree of ``(args, kwargs)``.
        out_spec: tree of the result.
        ranges: symbol of a size -> its smallest and largest value (None: no limit).
        guards: what else the sizes of a call must satisfy.
        cut: the model's DTensors.
        training: module -> whether it trains, of those that were asked.
    """

    lifted: LiftedGraph
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    ranges: Mapping[str, tuple[int, int | None]]
    guards: tuple[sympy.Basic, ...]
    cut: Cut = field(default_factory=dict)
    training: Mapping[str, bool] = field(default_factory=dict)


class _Outcome:
    """Where the wrapper leaves the result tree; a plain object, which export does not look into."""

    leaves: list[Any]
    spec: pytree.TreeSpec


class _OnTensors(nn.Module):
    """The model as a function of its tensor arguments alone, returning tensors alone."""

    def __init__(self, model: nn.Module, given: Arguments, outcome: _Outcome) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self.given, self.outcome = given, outcome

    def forward(self, *tensors: torch.Tensor) -> list[Any]:
        following = iter(tensors)
        leaves = [next(following) if _is_tensor(x) else x for x in self.given.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.given.spec)
        leaves, self.outcome.spec = pytree.tree_flatten(self.model(*args, **kwargs))
        for leaf in leaves:
            check_leaf("a result of the model", leaf)
        self.outcome.leaves = leaves
        return [x for x in leaves if _is_computed(x)]


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _is_computed(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor | torch.SymInt | torch.SymFloat | torch.SymBool)


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
    outcome: _Outcome

    @staticmethod
    def of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TensorCall:
        """The call of ``model`` with these arguments.

        Raises:
            CaptureError: the arguments do not fit the model, or none is a tensor.
        """
        form = CallForm.of(model)
        given = form.flatten(args, kwargs)
        named = tuple(zip(form.names(given), given.leaves, strict=True))
        for name, leaf in named:
            check_leaf(f"argument {name!r}", leaf)
        names = tuple(name for name, leaf in named if _is_tensor(leaf))
        if not names:
            raise CaptureError(
                "a call without tensor arguments has nothing to capture",
                found=", ".join(f"{name}={leaf!r}" for name, leaf in named) or "no arguments",
                remedy="pass at least one tensor, such as the token ids",
            )
        tensors = _in_mode_of(model, [_plain(x) for x in given.leaves if _is_tensor(x)])
        outcome = _Outcome()
        return TensorCall(model, given, names, tensors, _OnTensors(model, given, outcome), outcome)

    def whole(self, lifted: LiftedGraph) -> LiftedGraph:
        """The graph of ``module`` with all leaves of the model's arguments and results."""
        placeholders, results = iter(lifted.arguments), iter(lifted.results)
        return replace(
            lifted,
            arguments=tuple(
                next(placeholders) if _is_tensor(x) else Fixed(x) for x in self.given.leaves
            ),
            results=tuple(
                next(results) if _is_computed(x) else Fixed(x) for x in self.outcome.leaves
            ),
        )

    def traced(
        self,
        lifted: LiftedGraph,
        ranges: Mapping[str, tuple[int, int | None]],
        training: Mapping[str, bool],
    ) -> Traced:
        """The trace whose graph, of ``module``, is ``lifted``."""
        whole = self.whole(lifted)
        guards = _guards(whole)
        ranges = _narrowed(whole, ranges, guards)
        return Traced(whole, self.given.spec, self.outcome.spec, ranges, guards, training=training)


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Traced:
    """Trace ``model`` as it runs on this rank; sizes of two and more are symbolic.

    Raises:
        CaptureError: export failed; names the op and the line of the model.
    """
    call = TensorCall.of(model, args, kwargs)
    auto = torch.export.Dim.AUTO
    dims = tuple({d: auto for d, size in enumerate(t.shape) if size >= 2} for t in call.tensors)
    try:
        with (
            localised(model),
            torch.no_grad(),
            warnings.catch_warnings(),
            unlogged(FAKE_TENSORS),
            unprinted(),
        ):
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*assigned during export")
            written, training = watched(
                model,
                lambda: torch.export.export(
                    call.module,
                    tuple(call.tensors),
                    dynamic_shapes={"tensors": dims},
                    strict=False,
                ),
            )
            program = written.run_decompositions({})
    except Exception as error:
        raise capture_error(error) from error
    return call.traced(lift(program, prefix="model.", names=call.names), _ranges(program), training)


def trace_program(program: ExportedProgram) -> Traced:
    """The same for a model that its user exported.

    Raises:
        CaptureError: the program cannot be made functional.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings(), unlogged(FAKE_TENSORS):
            warnings.simplefilter("ignore")
            program = program.run_decompositions({})
    except Exception as error:
        raise capture_error(error) from error
    lifted, call = lift(program), program.call_spec
    assert call.in_spec is not None, "an exported program has an argument tree"
    assert call.out_spec is not None, "an exported program has a result tree"
    return Traced(lifted, call.in_spec, call.out_spec, _ranges(program), _guards(lifted))


def trace_graph(module: fx.GraphModule) -> Traced:
    """The same for a graph that is one already (``is_spmd``); it takes flat arguments."""
    assert is_spmd(module), "a graph that is not functional, typed and of ops alone"
    lifted = lift_module(module)
    in_spec = pytree.tree_structure(((0,) * len(lifted.arguments), {}))
    result = fx.node.map_arg(access.returned(module.graph), lambda node: 0)
    return Traced(lifted, in_spec, pytree.tree_structure(result), {}, ())


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


@contextmanager
def localised(model: nn.Module) -> Iterator[None]:
    """Within it, every DTensor among the model's parameters and buffers is its local tensor."""
    swapped: list[tuple[dict[str, Any], str, DTensor]] = []
    for module in model.modules():
        tables: list[dict[str, Any]] = [vars(module)["_parameters"], vars(module)["_buffers"]]
        for table in tables:
            for name, held in table.items():
                if isinstance(held, DTensor):
                    swapped.append((table, name, held))
    try:
        for table, name, held in swapped:
            local = held.to_local().detach()
            table[name] = nn.Parameter(local, False) if isinstance(held, nn.Parameter) else local
        yield
    finally:
        for table, name, held in swapped:
            table[name] = held


def _ranges(program: ExportedProgram) -> dict[str, tuple[int, int | None]]:
    found: dict[str, tuple[int, int | None]] = {}
    for symbol, bounds in program.range_constraints.items():
        if symbol.is_integer:
            upper = int(bounds.upper) if isinstance(bounds.upper, sympy.Integer) else None
            found[str(symbol)] = (int(bounds.lower) if bounds.lower.is_finite else 0, upper)
    return found


def _guards(lifted: LiftedGraph) -> tuple[sympy.Basic, ...]:
    """Conditions on sizes under which the trace took the path it took."""
    arguments = [x for x in lifted.arguments if isinstance(x, str)]
    shapes = [
        size
        for node in access.node_of(lifted.module.graph, "placeholder")
        if node.target in arguments and access.is_tensor(node)
        for size in access.shape(node)
        if isinstance(size, torch.SymInt)
    ]
    if not shapes:
        return ()
    bound = {symbol for size in shapes for symbol in size.node.expr.free_symbols}
    guards = dict.fromkeys(guard.expr for guard in shapes[0].node.shape_env.guards)
    return tuple(g for g in guards if g.free_symbols and g.free_symbols <= bound)


def _narrowed(
    lifted: LiftedGraph, ranges: Mapping[str, tuple[int, int | None]], guards: Sequence[sympy.Basic]
) -> dict[str, tuple[int, int | None]]:
    """``ranges``, ended where a guard on one symbol fails: values may hold what it specialized.

    A loop that ran once because ``(s + 63) // 64`` was 1 is that of at most 64. The symbols of the
    graph are told, whose ranges are what its checker reads.
    """
    narrowed = dict(ranges)
    for node in access.node_of(lifted.module.graph, "placeholder"):
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
