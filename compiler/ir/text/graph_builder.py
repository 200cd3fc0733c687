"""Build an SPMD graph op by op: every op runs on fake tensors, which allocate nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from compiler.errors import GraphError
from compiler.ir import access
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placements
from compiler.ir.text.spelling import (
    COMM_NAMES,
    ConstantType,
    Declaration,
    Size,
    SymbolType,
    TensorType,
    ValueType,
    op_name,
    size_of,
    symbols,
    type_of,
)
from compiler.ir.torch_logging import FAKE_TENSORS, unlogged

Range = tuple[float, float]
"""Least and greatest value of a symbol; infinite where there is none."""


class Builder:
    """Builds one graph.

    Args:
        mesh: the mesh of the graph.
        ranges: symbol -> its range. Symbols that start with ``u`` are unbacked: an op introduces
            them, or nothing but their range is known.
    """

    def __init__(self, mesh: Mesh, ranges: Mapping[str, Range]) -> None:
        self.mesh = mesh
        self.symbols = {
            name: sympy.Symbol(
                name, integer=True, positive=(low >= 0 and not access.is_unbacked(name)) or None
            )
            for name, (low, _) in ranges.items()
        }
        self.ranges = {self.symbols[name]: bounds for name, bounds in ranges.items()}
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env)
        self.hints = hints(self.ranges)
        self.bound: set[sympy.Symbol] = set()
        for symbol, hint in self.hints.items():
            # PyTorch renamed the method; the old name warns where the new one exists.
            add = getattr(self.env, "add_backed_var_to_val", None) or self.env.add_var_to_val
            add(symbol, hint)
            self._bind(symbol)
        self.graph = fx.Graph()
        self.attributes: dict[str, torch.Tensor] = {}
        self.inputs: dict[str, Placements | None] = {}
        self.keys: dict[fx.Node, Hashable] = {}
        self.results: dict[Hashable, tuple[Any, ValueType]] = {}

    def _bind(self, symbol: sympy.Symbol) -> None:
        """Let ``symbol`` stand for a number of its range."""
        self.bound.add(symbol)
        low, high = (
            (int_oo if x > 0 else -int_oo) if math.isinf(x) else int(x) for x in self.ranges[symbol]
        )
        self.env.var_to_range[symbol] = ValueRanges(low, high)

    def _size(self, size: Size) -> int | torch.SymInt:
        if isinstance(size, int):
            return size
        backed = size.free_symbols <= self.hints.keys()
        try:
            hint = int(size.subs(self.hints)) if backed else None
        except TypeError as error:
            raise GraphError(f"{size} is not a size") from error
        return self.env.create_symintnode(size, hint=hint)

    def _declared_value(self, declaration: Declaration) -> Any:
        """Return a value that no op computes."""
        for symbol in symbols(declaration.type):
            if symbol not in self.bound:
                self._bind(symbol)
        match declaration.type:
            case ConstantType(value):
                return value
            case SymbolType("sym", expression) if expression is not None:
                return self._size(expression)
            case TensorType(dtype, shape, device):
                sizes = list(map(self._size, shape))
                try:
                    with self.mode, self.env.suppress_guards():
                        if declaration.strides is None:
                            return torch.empty(sizes, dtype=dtype, device=device)
                        strides = list(map(self._size, declaration.strides))
                        return torch.empty_strided(sizes, strides, dtype=dtype, device=device)
                except Exception as error:
                    raise GraphError(_first_line(error)) from error
        raise GraphError(f"an input cannot be of type {declaration.type}")

    def placeholder(self, name: str, declaration: Declaration) -> fx.Node:
        """Add an input of the function."""
        self.inputs[name] = declaration.placements
        node = self.graph.placeholder(name)
        node.meta["val"] = self._declared_value(declaration)
        return node

    def attribute(self, target: str, declaration: Declaration) -> fx.Node:
        """Add a parameter or buffer; the module has a tensor on the meta device in its place.

        Raises:
            GraphError: not a tensor of constant sizes, not a name, or two declarations that differ.
        """
        value = self._declared_value(declaration)
        if not isinstance(value, torch.Tensor) or any(True for _ in symbols(declaration.type)):
            what = f"an attribute is a tensor of constant sizes, not {declaration.type}"
            raise GraphError(what)
        if not all(part.isidentifier() or part.isdecimal() for part in target.split(".")):
            raise GraphError(f"{target!r} cannot name an attribute")
        if target in self.inputs and target not in self.attributes:
            raise GraphError(f"{target!r} names an input and an attribute")
        meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        first = self.attributes.setdefault(target, meta)
        if (first.shape, first.stride(), first.dtype) != (meta.shape, meta.stride(), meta.dtype):
            raise GraphError(f"attribute {target!r} was declared with another type")
        if self.inputs.setdefault(target, declaration.placements) != declaration.placements:
            raise GraphError(f"attribute {target!r} was declared with another placement")
        node = self.graph.create_node("get_attr", target)
        node.meta["val"] = value
        return node

    def call(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        printed: ValueType,
        name: str,
    ) -> fx.Node:
        """Add a call of ``target`` whose result is of the type ``printed``, as node ``name``.

        Raises:
            GraphError: the op fails, or gives another type.
        """
        node = self.graph.create_node("call_function", target, args, dict(kwargs), name=name)
        fresh = {s for s in symbols(printed) if s not in self.bound}
        # Layers repeat, and most of the time to parse a model went into running ops: calls that
        # are equal in all but the data share one result, unless it depends on the data.
        key: Hashable = (target, self._key(args), self._key(kwargs))
        if any(access.is_unbacked(s.name) for s in symbols(printed)):
            data = (target, repr((args, kwargs)))
            key = data if fresh or data in self.results else key
        if key not in self.results:
            value = self._run(node, fresh)
            self.results[key] = (value, type_of(value))
        node.meta["val"] = self._as_printed(node, *self.results[key], printed)
        for symbol in fresh:
            self._bind(symbol)
        return node

    def _run(self, node: fx.Node, fresh: Collection[sympy.Symbol]) -> Any:
        """Return what the node computes; it introduces the symbols ``fresh``."""

        def read(operand: fx.Node) -> Any:
            value = access.value(operand)
            # A fake tensor remembers the numbers read out of it, and equal calls share theirs.
            return value.clone() if fresh and isinstance(value, torch.Tensor) else value

        if fresh:
            # The op names the numbers it introduces by this counter.
            self.env.unbacked_symint_counter = min(int(s.name[1:]) for s in fresh)
        assert callable(node.target), f"{node.target} is not a function"
        try:
            # The Python dispatcher keeps sizes symbolic in ops that are composed of others.
            with (
                self.mode,
                enable_python_dispatcher(),
                self.env.suppress_guards(),
                torch.no_grad(),
                unlogged(FAKE_TENSORS),
            ):
                args, kwargs = fx.node.map_arg(access.call(node), read)
                return node.target(*args, **kwargs)
        except Exception as error:
            other = getattr(getattr(node.target, "overloadpacket", None), "Tensor", None)
            scalar = getattr(node.target, "_overloadname", "") == "default" and other is not None
            raise GraphError(
                f"{_op_text(node)} refuses its operands",
                found=_first_line(error),
                remedy=f"the overload for tensors is {op_name(other)}" if scalar else "",
            ) from error

    def _key(self, item: Any) -> Hashable:
        """Return what an argument tells an op of types and layout, equal for equal knowledge."""
        match item:
            case fx.Node():
                if item not in self.keys:
                    self.keys[item] = self._key(access.value(item))
                return self.keys[item]
            case torch.Tensor():
                sizes = tuple(map(size_of, (*item.shape, *item.stride(), item.storage_offset())))
                return (item.dtype, item.device, sizes)
            case torch.SymInt():
                return size_of(item)
            case list() | tuple():
                return (type(item), *map(self._key, item))
            case dict():
                return tuple((name, self._key(x)) for name, x in item.items())
        return (type(item), repr(item))

    def _as_printed(self, node: fx.Node, value: Any, actual: ValueType, printed: ValueType) -> Any:
        """Return ``value``, its sizes written as in ``printed`` where they are the same sizes."""
        bare = isinstance(actual, SymbolType) and printed == SymbolType(actual.kind)
        same = isinstance(actual, TensorType) and actual == printed
        if bare or same or str(actual) == str(printed):
            return value
        if isinstance(printed, TensorType) and isinstance(actual, TensorType):
            sizes = list(map(self._size, printed.shape))
            alike = (actual.dtype, actual.device) == (printed.dtype, printed.device)
            same_rank = len(sizes) == len(value.shape)
            if alike and same_rank and all(map(_same, sizes, value.shape)):
                with self.mode, self.env.suppress_guards():
                    return value.as_strided(sizes, value.stride())
        raise GraphError(f"{_op_text(node)} gives {actual}, its value is printed as {printed}")

    def finish(self, returned: Any) -> SpmdGraph:
        """Return the graph, which returns ``returned``.

        Raises:
            GraphError: names of attributes that no module can have together.
        """
        self.graph.output(returned)
        for symbol in self.bound:
            # What ops demand of a symbol narrows its range; the text says what it is.
            self._bind(symbol)
        try:
            module = fx.GraphModule(self.attributes, self.graph)
        except (AttributeError, KeyError, TypeError) as error:
            names = ", ".join(self.attributes)
            raise GraphError(f"one module cannot have the attributes {names}") from error
        axes = self.mesh.axes
        placements = {n: dict(zip(axes, p, strict=True)) for n, p in self.inputs.items() if p}
        return spmd_graph(module, self.mesh, placements)


def _op_text(node: fx.Node) -> str:
    """Return the node's op as the text form writes it."""
    return COMM_NAMES.get(node.target) or op_name(node.target) or str(node.target)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _same(size: int | torch.SymInt, other: int | torch.SymInt) -> bool:
    return statically_known_true(size == other)


PRIMES = (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61)


def hints(ranges: Mapping[sympy.Symbol, Range]) -> dict[sympy.Symbol, int]:
    """Return a size inside its range for every backed symbol, to run ops with.

    Where the range allows, they differ, none is 0 or 1, and each is a multiple of a power of two
    and of a prime that is no usual size: ops then take no symbol for a constant or for another
    symbol, and do not stop at a division.
    """
    sizes: dict[sympy.Symbol, int] = {}
    for symbol, (low, high) in ranges.items():
        if access.is_unbacked(symbol.name):
            continue
        least, greatest = int(max(low, 2)), int(min(high, 2**40))
        likely = [64 * prime for prime in PRIMES]
        likely += [greatest // step * step for step in (64, 32, 16, 8, 4, 2, 1)]
        inside = [x for x in likely if least <= x <= greatest] or [greatest]
        sizes[symbol] = next((x for x in inside if x not in sizes.values()), inside[-1])
    return sizes
