"""Build an SPMD graph op by op: every op runs on fake tensors, which allocate nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from compiler.ir.graph import SpmdGraph, spmd_graph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placements
from compiler.ir.text.types import (
    ConstantType,
    Size,
    SymbolType,
    TensorType,
    ValueType,
    symbols,
    type_of,
)

Range = tuple[float, float]
"""Least and greatest value; infinite where there is none."""


class Refused(Exception):  # noqa: N818 -- says what happened; the parser makes it an error
    """A declaration that cannot be built, or an op that refuses its operands."""


class Gives(Exception):  # noqa: N818
    """An op that gives another type than the text says; the message is that type."""


class Builder:
    """Builds one graph.

    Args:
        mesh: the mesh of the graph.
        ranges: symbol -> its range. Symbols that start with ``u`` are unbacked: the value of an
            op introduces them, or nothing is known of them but the range.
    """

    def __init__(self, mesh: Mesh, ranges: Mapping[str, Range]) -> None:
        self.mesh = mesh
        self.symbols = {
            name: sympy.Symbol(name, integer=True, positive=None if is_unbacked(name) else True)
            for name in ranges
        }
        self.ranges = {self.symbols[name]: bounds for name, bounds in ranges.items()}
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env)
        self.hints = hints(self.ranges)
        self.bound: set[sympy.Symbol] = set()
        for symbol, hint in self.hints.items():
            # The name of this method changed in 2.12.
            add = getattr(self.env, "add_backed_var_to_val", None) or self.env.add_var_to_val
            add(symbol, hint)
            self._bind(symbol)
        self.graph = fx.Graph()
        self.attributes: dict[str, torch.Tensor] = {}
        self.inputs: dict[str, Placements] = {}

    def _bind(self, symbol: sympy.Symbol) -> None:
        self.bound.add(symbol)
        self.env.var_to_range[symbol] = _value_range(self.ranges[symbol])

    def _size(self, size: Size) -> int | torch.SymInt:
        if isinstance(size, int):
            return size
        known = size.free_symbols <= self.hints.keys()
        hint = int(size.subs(self.hints)) if known else None
        return self.env.create_symintnode(size, hint=hint)

    def _held(self, declared: ValueType, strides: tuple[Size, ...] | None) -> Any:
        """A value of type ``declared`` that no op computes."""
        for symbol in symbols(declared):
            if symbol not in self.bound:
                self._bind(symbol)
        if isinstance(declared, ConstantType):
            return declared.value
        if isinstance(declared, SymbolType) and declared.expression is not None:
            return self._size(declared.expression)
        if not isinstance(declared, TensorType):
            raise Refused(f"an input cannot be {declared}")
        sizes = [self._size(size) for size in declared.shape]
        with self.mode:
            if strides is None:
                return torch.empty(sizes, dtype=declared.dtype, device=declared.device)
            return torch.empty_strided(
                sizes,
                [self._size(stride) for stride in strides],
                dtype=declared.dtype,
                device=declared.device,
            )

    def placeholder(
        self, name: str, declared: ValueType, strides: tuple[Size, ...] | None
    ) -> fx.Node:
        """An input of the function."""
        node = self.graph.placeholder(name)
        node.meta["val"] = self._held(declared, strides)
        return node

    def attribute(
        self, target: str, declared: ValueType, strides: tuple[Size, ...] | None
    ) -> fx.Node:
        """A parameter or buffer; the module holds a tensor on the meta device in its place."""
        held = self._held(declared, strides)
        if not isinstance(held, torch.Tensor) or any(True for _ in symbols(declared)):
            raise Refused(f"an attribute is a tensor of constant sizes, not {declared}")
        known = self.attributes.get(target)
        meta = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        if known is not None and (known.shape, known.stride(), known.dtype) != (
            meta.shape,
            meta.stride(),
            meta.dtype,
        ):
            raise Refused(f"attribute {target!r} is {declared} here, {type_of(known)} before")
        self.attributes.setdefault(target, meta)
        node = self.graph.create_node("get_attr", target)
        node.meta["val"] = held
        return node

    def call(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        declared: ValueType,
        name: str,
    ) -> fx.Node:
        """One call of ``target``.

        Raises:
            Refused: the op fails.
            Gives: it gives another type than ``declared``.
        """
        node = self.graph.create_node("call_function", target, args, dict(kwargs), name=name)
        fresh = [s for s in symbols(declared) if s not in self.bound]
        if fresh:
            self.env.unbacked_symint_counter = min(int(s.name[1:]) for s in fresh)
        values = fx.node.map_arg((args, dict(kwargs)), lambda n: n.meta["val"])
        try:
            with self.mode, self.env.suppress_guards(), torch.no_grad():
                found = target(*values[0], **values[1])
        except Exception as error:
            raise Refused(str(error).strip().split("\n")[0]) from error
        node.meta["val"] = self._as_declared(found, declared)
        for symbol in fresh:
            self._bind(symbol)
        return node

    def _as_declared(self, found: Any, declared: ValueType) -> Any:
        """``found`` with sizes written as in ``declared``, where they are the same sizes."""
        actual = type_of(found)
        bare = isinstance(actual, SymbolType) and declared == SymbolType(actual.kind)
        if bare or str(actual) == str(declared):
            return found
        if isinstance(declared, TensorType) and isinstance(actual, TensorType):
            sizes = [self._size(size) for size in declared.shape]
            alike = (actual.dtype, actual.device) == (declared.dtype, declared.device)
            if alike and len(sizes) == len(found.shape) and all(map(_same, sizes, found.shape)):
                with self.mode, self.env.suppress_guards():
                    return found.as_strided(sizes, found.stride())
        raise Gives(str(actual))

    def finish(self, returned: Any) -> SpmdGraph:
        """The graph, which returns ``returned``.

        Raises:
            PlacementError: a placement that does not fit its input.
            MeshError: a group the mesh does not know.
        """
        self.graph.output(returned)
        for symbol in self.bound:
            # What ops demand of a symbol narrows its range; the text gives the range.
            self.env.var_to_range[symbol] = _value_range(self.ranges[symbol])
        module = fx.GraphModule(self.attributes, self.graph)
        axes = self.mesh.axes
        inputs = {n: dict(zip(axes, p, strict=True)) for n, p in self.inputs.items()}
        return spmd_graph(module, self.mesh, inputs)


def is_unbacked(symbol: str) -> bool:
    """Whether PyTorch takes a symbol of this name for a number read out of a tensor."""
    return symbol.startswith("u")


def _same(size: int | torch.SymInt, other: int | torch.SymInt) -> bool:
    return statically_known_true(size == other)


def _value_range(bounds: Range) -> Any:
    low, high = (
        int(x) if abs(x) != float("inf") else (int_oo if x > 0 else -int_oo) for x in bounds
    )
    return ValueRanges(low, high)


PRIMES = (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61)


def hints(ranges: Mapping[sympy.Symbol, Range]) -> dict[sympy.Symbol, int]:
    """A size inside its range for every backed symbol, to run ops with.

    All differ, none is 0 or 1 where the range allows, and each is a multiple of a large power of
    two: ops then neither specialize to it, nor take two symbols for one, nor stop at a division.
    """
    found: dict[sympy.Symbol, int] = {}
    for symbol, (low, high) in ranges.items():
        if is_unbacked(symbol.name):
            continue
        least, greatest = max(int(low), 2), int(min(high, 2**40))
        likely = [64 * p for p in PRIMES]
        likely += [greatest // step * step for step in (64, 32, 16, 8, 4, 2, 1)]
        likely += [least * 64, least]
        taken = set(found.values())
        inside = [x for x in likely if least <= x <= greatest]
        fallback = inside[-1] if inside else int(low)
        found[symbol] = next((x for x in inside if x not in taken), fallback)
    return found
