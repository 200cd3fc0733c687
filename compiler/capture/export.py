"""Trace a model with torch.export: one functional graph whose inputs include all state.

The model is called through a wrapper that takes tensors alone (``wrapping``), so that the trees of
arguments and results are ours to keep; the wrapper leaves no trace in names and layer paths.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.distributed.tensor import DTensor
from torch.export import ExportedProgram

from compiler.capture.export_errors import capture_error
from compiler.capture.lift_state import is_spmd, lift, lift_module
from compiler.capture.pytrees import whole
from compiler.capture.trace import TensorCall, Traced, guards_of, size_range
from compiler.ir import access
from compiler.ir.torch_logging import FAKE_TENSORS, unlogged, unprinted


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
            own_containers(model),
            torch.no_grad(),
            warnings.catch_warnings(),
            unlogged(FAKE_TENSORS),
            unprinted(),
        ):
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*assigned during export")
            program = torch.export.export(
                call.module, tuple(call.tensors), dynamic_shapes={"tensors": dims}, strict=False
            )
            program = program.run_decompositions({})
    except Exception as error:
        raise capture_error(error) from error
    return call.traced(lift(program, prefix="model.", names=call.names), _ranges(program))


def trace_program(program: ExportedProgram) -> Traced:
    """The same for a model that its user exported.

    Raises:
        CaptureError: the program cannot be made functional.
    """
    program = functional_program(program)
    lifted, call = lift(program), program.call_spec
    assert call.out_spec is not None, "an exported program has a result tree"
    return Traced(lifted, whole(call.out_spec), _ranges(program), guards_of(lifted))


def functional_program(program: ExportedProgram) -> ExportedProgram:
    """The program in functional ATen ops.

    Raises:
        CaptureError: it cannot be made so.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings(), unlogged(FAKE_TENSORS):
            warnings.simplefilter("ignore")
            functional: ExportedProgram = program.run_decompositions({})
            return functional
    except Exception as error:
        raise capture_error(error) from error


def trace_graph(module: fx.GraphModule) -> Traced:
    """The same for a graph that is one already (``is_spmd``); it takes flat arguments."""
    assert is_spmd(module), "a graph that is not functional, typed and of ops alone"
    lifted = lift_module(module)
    result = fx.node.map_arg(access.returned(module.graph), lambda node: 0)
    return Traced(lifted, whole(pytree.tree_structure(result)), {}, ())


@contextmanager
def localised(model: nn.Module) -> Iterator[None]:
    """Within it, every DTensor among the model's parameters and buffers is its local tensor."""
    swapped: list[tuple[dict[str, Any], str, DTensor]] = []
    for module in model.modules():
        tables: list[dict[str, Any]] = [vars(module)["_parameters"], vars(module)["_buffers"]]
        for table in tables:
            for name, tensor in table.items():
                if isinstance(tensor, DTensor):
                    swapped.append((table, name, tensor))
    try:
        for table, name, tensor in swapped:
            local = tensor.to_local().detach()
            table[name] = nn.Parameter(local, False) if isinstance(tensor, nn.Parameter) else local
        yield
    finally:
        for table, name, tensor in swapped:
            table[name] = tensor


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
    constraints = program.range_constraints.items()
    return {str(symbol): size_range(bounds) for symbol, bounds in constraints if symbol.is_integer}
