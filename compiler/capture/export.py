"""Trace a model with torch.export: one functional graph whose inputs include all state.

The model is called through a wrapper that takes tensors alone, so that the trees of arguments and
results are ours to keep; the wrapper leaves no trace in names and layer paths.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
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
from compiler.capture.reads import Reads
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
        reads: the Python state that the trace read; None where no Python ran.
    """

    lifted: LiftedGraph
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    ranges: Mapping[str, tuple[int, int | None]]
    guards: tuple[sympy.Basic, ...]
    cut: Cut = field(default_factory=dict)
    reads: Reads | None = None


class _Outcome:
    """Where the wrapper leaves the result tree, and what the model reads.

    A plain object, which export does not look into.
    """

    def __init__(self, reads: Reads) -> None:
        self.reads = reads

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
        with self.outcome.reads.recording():
            result = self.model(*args, **kwargs)
        leaves, self.outcome.spec = pytree.tree_flatten(result)
        for leaf in leaves:
            check_leaf("a result of the model", leaf)
        self.outcome.leaves = leaves
        return [x for x in leaves if _is_computed(x)]


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _is_computed(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor | torch.SymInt | torch.SymFloat | torch.SymBool)


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Traced:
    """Trace ``model`` as it runs on this rank; sizes of two and more are symbolic.

    Raises:
        CaptureError: export failed; names the op and the line of the model.
    """
    form = CallForm.of(model)
    given = form.flatten(args, kwargs)
    named = tuple(zip(form.names(given), given.leaves, strict=True))
    for name, leaf in named:
        check_leaf(f"argument {name!r}", leaf)
    if not any(_is_tensor(leaf) for _, leaf in named):
        raise CaptureError(
            "a call without tensor arguments has nothing to capture",
            found=", ".join(f"{name}={leaf!r}" for name, leaf in named) or "no arguments",
            remedy="pass at least one tensor, such as the token ids",
        )
    tensors = _in_mode_of(model, [_plain(x) for x in given.leaves if _is_tensor(x)])
    auto = torch.export.Dim.AUTO
    dims = tuple({d: auto for d, size in enumerate(t.shape) if size >= 2} for t in tensors)
    outcome = _Outcome(Reads(model))
    wrapped = _OnTensors(model, given, outcome)
    try:
        with (
            localised(model),
            own_containers(model),
            torch.no_grad(),
            warnings.catch_warnings(),
            unlogged(FAKE_TENSORS),
            unprinted(),
        ):
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*assigned during export")
            program = torch.export.export(
                wrapped, tuple(tensors), dynamic_shapes={"tensors": dims}, strict=False
            )
            program = program.run_decompositions({})
    except Exception as error:
        raise capture_error(error) from error
    outcome.reads.settle()
    lifted = lift(program, prefix="model.", names=[n for n, x in named if _is_tensor(x)])
    placeholders, results = iter(lifted.arguments), iter(lifted.results)
    whole = replace(
        lifted,
        arguments=tuple(next(placeholders) if _is_tensor(x) else Fixed(x) for x in given.leaves),
        results=tuple(next(results) if _is_computed(x) else Fixed(x) for x in outcome.leaves),
    )
    return Traced(
        whole, given.spec, outcome.spec, _ranges(program), _guards(whole), reads=outcome.reads
    )


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


@contextmanager
def own_containers(model: nn.Module) -> Iterator[None]:
    """Give modules back their lists and dicts, of which torch.export leaves them copies."""
    before = [(vars(m), list(vars(m).items())) for m in model.modules()]
    try:
        yield
    finally:
        for attributes, items in before:
            for key, value in items:
                now = attributes.get(key)
                if now is not value and _is_copy(now, value):
                    attributes[key] = value


def _is_copy(new: Any, old: Any) -> bool:
    """Whether two containers hold the same objects, at any depth."""
    if type(new) is not type(old) or not isinstance(old, dict | list | tuple):
        return new is old
    if isinstance(old, dict):
        return list(new) == list(old) and all(_is_copy(new[key], old[key]) for key in old)
    return len(new) == len(old) and all(map(_is_copy, new, old))


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
