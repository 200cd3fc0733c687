"""Build a functional graph while a model runs that writes to tensors in place.

A tensor is a chain of views of a storage. A storage has a newest node and counts its writes; a
tensor has the node that holds it after so many of them. Read later, it is computed anew from the
storage; written to, it is put back into the storage through the inverses of its views.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import sympy
import torch
from torch import fx

from compiler.ir.access import TORCH, inside

aten = torch.ops.aten
SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
NOT_OF_THE_MODEL = (TORCH, inside(Path(__file__).parent), "<")


class NotRecordedError(Exception):
    """Stop recording: torch.export has to trace this model.

    Args:
        reason: what the recorder does not follow.
        where: ``file.py:12`` of the model's code, where known.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        self.reason, self.where = reason, where
        super().__init__(f"{reason} at {where}" if where else reason)


def one_line(error: Exception) -> str:
    """Return the type of an exception, and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


@dataclass(frozen=True, eq=False)
class Metadata:
    """Type, shape and strides that tensors share.

    Attributes:
        key: all of it, symbolic sizes as expressions; ``shape`` and ``dtype`` are among them.
        number: stands for ``key`` in other keys.
        elem: the tensor without data behind stand-ins.
        val: what nodes have in ``meta["val"]``.
    """

    key: tuple[Any, ...]
    number: int
    elem: torch.Tensor
    val: Any

    @property
    def shape(self) -> tuple[Any, ...]:
        """Return the sizes as ints and sympy expressions."""
        return self.key[0]  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Return the element type."""
        return self.key[2]  # type: ignore[no-any-return]


@dataclass(eq=False, slots=True)
class Storage:
    """Memory that a tensor and its views share.

    Attributes:
        node: its contents before ``written``.
        source: the placeholder it came in by.
        version: number of writes.
        frozen: why it may not be written to, if it may not.
        written: views and the node written through them last, not yet put back.
    """

    node: fx.Node
    source: str | None = None
    version: int = 0
    frozen: str = ""
    written: tuple[tuple[View, ...], fx.Node] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """One call of a view op: its arguments behind the operand, what it reads and gives.

    Attributes:
        results: what the call gives, where ``index`` picks one of several.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    operand: Metadata
    result: Metadata
    results: Any = None
    index: int | None = None


@dataclass(eq=False, slots=True)
class Value:
    """A tensor of the model: views of a storage, and its node as of a version of it."""

    storage: Storage
    metadata: Metadata
    node: fx.Node
    views: tuple[View, ...] = ()
    version: int = 0


class FunctionalGraph:
    """A graph under construction, and what the model's tensors are in it.

    Attributes:
        graph: the graph.
        modules: the modules that run, as ``nn_module_stack`` has them.
        sources: symbol of a size -> placeholder and dimension that have it.
    """

    def __init__(self, symint: Callable[[sympy.Basic], Any]) -> None:
        """Start an empty graph; ``symint`` makes a size."""
        self.graph = fx.Graph()
        self.modules: dict[str, tuple[str, type]] = {}
        self.sources: dict[sympy.Symbol, tuple[fx.Node, int]] = {}
        self._symint = symint
        self._sizes: dict[sympy.Basic, fx.Node] = {}
        self._lines: dict[tuple[CodeType, int], str] = {}
        self._first: fx.Node | None = None

    def placeholder(self, name: str, metadata: Metadata) -> Value:
        """Add an input, before all ops."""
        with self.graph.inserting_before(self._first) if self._first else nullcontext():
            node = self.graph.placeholder(name)
        node.meta["val"] = metadata.val
        for dim, size in enumerate(metadata.shape):
            if isinstance(size, sympy.Symbol):
                self.sources.setdefault(size, (node, dim))
        return Value(Storage(node, str(node.target)), metadata, node)

    def call(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], val: Any
    ) -> fx.Node:
        """Add a node that calls ``func``."""
        name = getattr(func, "_opname", None) or func.__name__
        node = self.graph.create_node("call_function", func, args, dict(kwargs), name)
        node.meta = {"val": val, "nn_module_stack": self.modules, "stack_trace": self.trace()}
        self._first = self._first or node
        return node

    def trace(self) -> str:
        """Return the model's line as stack traces write it: the innermost of a ``forward``."""
        if (frame := _frame_of_model()) is None:
            return ""
        code, line = frame.f_code, frame.f_lineno
        if (place := self._lines.get((code, line))) is None:
            place = f'File "{code.co_filename}", line {line}, in {code.co_name}'
            self._lines[code, line] = place
        return place

    def bail(self, reason: str) -> NotRecordedError:
        """Return the error that stops recording at the model's current line."""
        if (frame := _frame_of_model(exact=True)) is None:
            return NotRecordedError(reason)
        return NotRecordedError(reason, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")

    # ---- tensors

    def read(self, value: Value) -> fx.Node:
        """Return the node that holds ``value`` now."""
        storage = value.storage
        if value.version != storage.version:
            node = self._contents(storage)
            for view in value.views:
                node = self._view(view, node)
            value.node, value.version = node, storage.version
        return value.node

    def write(self, value: Value, node: fx.Node) -> None:
        """Let ``value`` be ``node`` from now on, and with it all that shares its storage."""
        storage = value.storage
        if storage.frozen:
            raise self.bail(storage.frozen)
        unknown = [v.func for v in value.views if v.func not in INVERSES and v.func not in WHOLE]
        if unknown:
            raise self.bail(f"a write through {unknown[0]}")
        self._contents(storage)
        storage.written, storage.version = (value.views, node), storage.version + 1
        value.node, value.version = node, storage.version

    def _contents(self, storage: Storage) -> fx.Node:
        """Return the node of all of a storage; the last write is put back when it is read."""
        if storage.written is not None:
            views, node = storage.written
            bases = [storage.node]
            for view in views[:-1]:
                bases.append(self._view(view, bases[-1]))
            for view, base in zip(reversed(views), reversed(bases), strict=bool(views)):
                node = self._put_back(view, base, node)
            storage.node, storage.written = node, None
        return storage.node

    def _view(self, view: View, node: fx.Node) -> fx.Node:
        if view.index is None:
            return self.call(view.func, (node, *view.args), view.kwargs, view.result.val)
        several = self.call(view.func, (node, *view.args), view.kwargs, view.results)
        return self.call(operator.getitem, (several, view.index), {}, view.result.val)

    def _put_back(self, view: View, base: fx.Node, node: fx.Node) -> fx.Node:
        """Replace the part of ``base`` that is seen by ``view`` by ``node``."""
        if view.func in WHOLE:
            return node
        func, args = INVERSES[view.func](base, node, view.args)
        if func is aten.view.default:
            args = (node, [self.size(x) for x in view.operand.shape])
        return self.call(func, args, view.kwargs if func in SCATTERS else {}, view.operand.val)

    # ---- sizes

    def size(self, size: Any) -> Any:
        """Return a size as an argument: an int, or the node that computes it."""
        expr = size.node.expr if isinstance(size, torch.SymInt) else size
        if isinstance(expr, int) or expr.is_Integer:
            return int(expr)
        if (node := self._sizes.get(expr)) is None:
            node = self._sizes[expr] = self._computed(expr)
        return node

    def _computed(self, expr: Any) -> fx.Node:
        kind = type(expr).__name__
        if expr.is_Symbol and expr in self.sources:
            return self.call(aten.sym_size.int, self.sources[expr], {}, self._symint(expr))
        if kind in BINARY and len(expr.args) == 2:
            operands = tuple(self.size(arg) for arg in expr.args)
            return self.call(BINARY[kind], operands, {}, self._symint(expr))
        if kind not in ("Add", "Mul"):
            raise self.bail(f"a size of {expr}")
        op = operator.add if kind == "Add" else operator.mul
        first, *others = sorted(expr.args, key=lambda arg: (arg.is_number, str(arg)))
        node, partial = self.size(first), first
        for arg in others:
            partial = expr.func(partial, arg)
            node = self.call(op, (node, self.size(arg)), {}, self._symint(partial))
        assert isinstance(node, fx.Node), "a symbolic sum or product has a symbolic operand"
        return node

    def settle(self, settled: Callable[[Any], Any], new: Mapping[int, Any]) -> None:
        """Let sizes that turned out to be equal be one node, and values have their final types.

        ``settled`` gives what a size turned out to be, ``new`` the value in place of one with that
        id among ``meta["val"]``.
        """
        self._sizes = {expr: node for expr, node in self._sizes.items() if not node._erased}
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        kept: dict[Any, fx.Node] = {}
        for expr, node in sorted(self._sizes.items(), key=lambda item: order[item[1]]):
            final = settled(expr)
            if final.is_Integer:
                _replace(node, int(final))
            elif expr.is_Symbol and not final.is_Symbol:
                raise self.bail(f"size {expr} is {final}")
            elif (first := kept.setdefault(final, node)) is not node:
                _replace(node, first)
            elif final is not expr:
                node.meta["val"] = self._symint(final)
        for node in self.graph.nodes:
            val = node.meta.get("val")
            if isinstance(val, list | tuple):
                node.meta["val"] = type(val)(new.get(id(x), x) for x in val)
            else:
                node.meta["val"] = new.get(id(val), val)


def _frame_of_model(*, exact: bool = False) -> FrameType | None:
    """Return the model's innermost frame; unless ``exact``, of a ``forward`` if any runs."""
    frame: FrameType | None = sys._getframe(2)
    innermost: FrameType | None = None
    while frame is not None:
        if not frame.f_code.co_filename.startswith(NOT_OF_THE_MODEL):
            if exact or frame.f_code.co_name == "forward":
                return frame
            innermost = innermost or frame
        frame = frame.f_back
    return innermost


def _replace(node: fx.Node, by: Any) -> None:
    swap: Callable[[fx.Node], Any] = lambda x: by if x is node else x  # noqa: E731
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, swap)
        user.kwargs = fx.node.map_arg(user.kwargs, swap)
    node.graph.erase_node(node)


BINARY = {
    "FloorDiv": operator.floordiv, "PythonMod": operator.mod, "Mod": operator.mod,
    "Max": torch.sym_max, "Min": torch.sym_min,
}  # fmt: skip
"""Name of an expression of two sizes -> what computes it."""
WHOLE = (aten.detach.default, aten.alias.default)
SCATTERS = (aten.slice_scatter.default, aten.select_scatter.default)


def _permuted(base: fx.Node, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    (dims,) = args
    return aten.permute.default, (
        node,
        [[d % len(dims) for d in dims].index(i) for i in range(len(dims))],
    )


def _unsqueezed(base: fx.Node, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    if base.meta["val"].dim() == node.meta["val"].dim():  # another size than 1: nothing squeezed
        return aten.view.default, ()
    return aten.unsqueeze.default, (node, *args)


INVERSES: dict[Any, Callable[[fx.Node, fx.Node, tuple[Any, ...]], tuple[Any, tuple[Any, ...]]]] = {
    aten.view.default: lambda base, node, args: (aten.view.default, ()),
    aten._unsafe_view.default: lambda base, node, args: (aten.view.default, ()),
    aten.t.default: lambda base, node, args: (aten.t.default, (node,)),
    aten.transpose.int: lambda base, node, args: (aten.transpose.int, (node, *args)),
    aten.permute.default: _permuted,
    aten.unsqueeze.default: lambda base, node, args: (aten.squeeze.dim, (node, *args)),
    aten.squeeze.dim: _unsqueezed,
    aten.slice.Tensor: lambda base, node, args: (SCATTERS[0], (base, node, *args)),
    aten.select.int: lambda base, node, args: (SCATTERS[1], (base, node, *args)),
}
"""View op -> the call that puts a written view back: (base, view, the view's arguments) -> it."""
