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

from compiler.ir import access
from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placements
from compiler.ir.text.types import (
    ConstantType,
    Held,
    Size,
    SymbolType,
    TensorType,
    ValueType,
    size_of,
    symbols,
    type_of,
)
from compiler.ir.torch_logging import FAKE_TENSORS, unlogged

Range = tuple[float, float]
"""Least and greatest value of a symbol; infinite where there is none."""


class Refused(Exception):  # noqa: N818 -- the parser makes it an error
    """A declaration that cannot be built, or an op that refuses its operands."""


class Gives(Exception):  # noqa: N818 -- the parser makes it an error
    """An op that gives another type than the text says; the message is the type it gives."""


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
            name: sympy.Symbol(name, integer=True, positive=not access.is_unbacked(name) or None)
            for name in ranges
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
        self.known: dict[Hashable, Any] = {}

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
            raise Refused(f"{size} is no size") from error
        return self.env.create_symintnode(size, hint=hint)

    def _made(self, held: Held) -> Any:
        """A value that no op computes."""
        for symbol in symbols(held.type):
            if symbol not in self.bound:
                self._bind(symbol)
        match held.type:
            case ConstantType(value):
                return value
            case SymbolType("sym", expression) if expression is not None:
                return self._size(expression)
            case TensorType(dtype, shape, device):
                sizes = list(map(self._size, shape))
                try:
                    with self.mode, self.env.suppress_guards():
                        if held.strides is None:
                            return torch.empty(sizes, dtype=dtype, device=device)
                        strides = list(map(self._size, held.strides))
                        return torch.empty_strided(sizes, strides, dtype=dtype, device=device)
                except Exception as error:
                    raise Refused(_first_line(error)) from error
        raise Refused(f"an input cannot be of type {held.type}")

    def placeholder(self, name: str, held: Held) -> fx.Node:
        """An input of the function."""
        self.inputs[name] = held.placements
        node = self.graph.placeholder(name)
        node.meta["val"] = self._made(held)
        return node

    def attribute(self, target: str, held: Held) -> fx.Node:
        """A parameter or buffer; the module holds a tensor on the meta device in its place.

        Raises:
            Refused: no tensor of constant sizes, no name, or two declarations that differ.
        """
        value = self._made(held)
        if not isinstance(value, torch.Tensor) or any(True for _ in symbols(held.type)):
            raise Refused(f"an attribute is a tensor of constant sizes, not {held.type}")
        if not all(part.isidentifier() or part.isdecimal() for part in target.split(".")):
            raise Refused(f"{target!r} cannot name an attribute")
        if target in self.inputs and target not in self.attributes:
            raise Refused(f"{target!r} names an input and an attribute")
        meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        known = self.attributes.setdefault(target, meta)
        if (known.shape, known.stride(), known.dtype) != (meta.shape, meta.stride(), meta.dtype):
            raise Refused(f"attribute {target!r} was declared with another type")
        if self.inputs.setdefault(target, held.placements) != held.placements:
            raise Refused(f"attribute {target!r} was declared with another placement")
        node = self.graph.create_node("get_attr", target)
        node.meta["val"] = value
        return node

    def call(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        held: Held,
        name: str,
    ) -> fx.Node:
        """One call of ``target``; ``name`` names its node.

        Raises:
            Refused: the op fails.
            Gives: it gives another type than ``held`` says.
        """
        node = self.graph.create_node("call_function", target, args, dict(kwargs), name=name)
        fresh = {s for s in symbols(held.type) if s not in self.bound}
        # Layers repeat, and most of the time to parse a model went into running ops: calls that
        # are equal in all but the data share one result, unless it depends on the data.
        key: Hashable = (target, self._key(args), self._key(kwargs))
        if any(access.is_unbacked(s.name) for s in symbols(held.type)):
            data = (target, repr((args, kwargs)))
            key = data if fresh or data in self.known else key
        if key not in self.known:
            self.known[key] = self._run(node, fresh)
        node.meta["val"] = self._as_printed(self.known[key], held.type)
        for symbol in fresh:
            self._bind(symbol)
        return node

    def _run(self, node: fx.Node, fresh: Collection[sympy.Symbol]) -> Any:
        """What the node computes; it introduces the symbols ``fresh``."""

        def read(operand: fx.Node) -> Any:
            held = access.value(operand)
            # A fake tensor remembers the numbers read out of it, and equal calls share theirs.
            return held.clone() if fresh and isinstance(held, torch.Tensor) else held

        if fresh:
            # The op names the numbers it introduces by this counter.
            self.env.unbacked_symint_counter = min(int(s.name[1:]) for s in fresh)
        assert callable(node.target), f"{node.target} is no function"
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
            raise Refused(_first_line(error)) from error

    def _key(self, item: Any) -> Hashable:
        """What an argument tells an op about types and layout, equal for equal knowledge."""
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

    def _as_printed(self, found: Any, printed: ValueType) -> Any:
        """``found``, its sizes written as in ``printed`` where they are the same sizes."""
        actual = type_of(found)
        bare = isinstance(actual, SymbolType) and printed == SymbolType(actual.kind)
        if bare or str(actual) == str(printed):
            return found
        if isinstance(printed, TensorType) and isinstance(actual, TensorType):
            sizes = list(map(self._size, printed.shape))
            alike = (actual.dtype, actual.device) == (printed.dtype, printed.device)
            if alike and len(sizes) == len(found.shape) and all(map(_same, sizes, found.shape)):
                with self.mode, self.env.suppress_guards():
                    return found.as_strided(sizes, found.stride())
        raise Gives(str(actual))

    def finish(self, returned: Any) -> SpmdGraph:
        """The graph, which returns ``returned``.

        Raises:
            Refused: names of attributes that no module can have together.
        """
        self.graph.output(returned)
        for symbol in self.bound:
            # What ops demand of a symbol narrows its range; the text says what it is.
            self._bind(symbol)
        try:
            module = fx.GraphModule(self.attributes, self.graph)
        except (AttributeError, KeyError, TypeError) as error:
            names = ", ".join(self.attributes)
            raise Refused(f"one module cannot have the attributes {names}") from error
        axes = self.mesh.axes
        given = {n: dict(zip(axes, p, strict=True)) for n, p in self.inputs.items() if p}
        return spmd_graph(module, self.mesh, given)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _same(size: int | torch.SymInt, other: int | torch.SymInt) -> bool:
    return statically_known_true(size == other)


PRIMES = (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61)


def hints(ranges: Mapping[sympy.Symbol, Range]) -> dict[sympy.Symbol, int]:
    """A size inside its range for every backed symbol, to run ops with.

    Where the range allows, they differ, none is 0 or 1, and each is a multiple of a power of two
    and of a prime that is no usual size: ops then take no symbol for a constant or for another
    symbol, and do not stop at a division.
    """
    found: dict[sympy.Symbol, int] = {}
    for symbol, (low, high) in ranges.items():
        if access.is_unbacked(symbol.name):
            continue
        least, greatest = max(int(low), 2), int(min(high, 2**40))
        likely = [64 * prime for prime in PRIMES]
        likely += [greatest // step * step for step in (64, 32, 16, 8, 4, 2, 1)]
        inside = [x for x in likely if least <= x <= greatest] or [greatest]
        found[symbol] = next((x for x in inside if x not in found.values()), inside[-1])
    return found
