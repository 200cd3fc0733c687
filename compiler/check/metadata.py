"""Whether nodes state truly what they compute: shapes and types, against what their ops give.

Graphs are interpreted by the shapes, types and numbers in their metadata. A rewrite that changed a
call and not what is stated about it would be believed; so every call runs, on tensors without data:
where size symbols have their hints, and once more at other sizes, which tell symbols apart.
What cannot run so is taken as stated: sizes that depend on data, ops without such a form, and calls
that fail in the source too. Statements that are made many times, as by layers, are checked once.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses import fake_tensor

from compiler.check.sizes import input_sizes
from compiler.errors import GraphError
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules.meaning import shape_key, size_key, step
from compiler.ir.torch_logging import FAKE_TENSORS, unlogged

OTHER_SIZES = (240, 48, 8, 3)
"""Of the first size symbol; the next ones have multiples. The first of these counts at which the
source runs: its code may need multiples of something, or be limited."""

HOST = torch.device("cpu")
WITHOUT_DATA = (
    NotImplementedError,
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedOperatorException,
    fake_tensor.UnsupportedFakeTensorException,
)
"""What ops raise that have no form without data, or no result of known size."""

PYTHON = frozenset(
    getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem", "eq", "ge", "le")
)
"""What capture leaves of arithmetic with sizes."""

Sizes = Mapping[sympy.Symbol, int]


class _UnknownError(Exception):
    """Nothing can be said of a call."""


@dataclass(frozen=True)
class _Typed:
    """A tensor by its metadata."""

    shape: tuple[Any, ...]
    dtype: torch.dtype
    strides: tuple[Any, ...] = field(compare=False)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True)
class _Symbolic:
    """A symbolic number or truth value by its expression: to compare the value itself guards."""

    expression: sympy.Basic


@dataclass(frozen=True)
class _Failed:
    """A call that its op refuses."""

    call: Hashable
    why: str = field(compare=False)

    def __str__(self) -> str:
        return f"an error: {self.why}"


@dataclass(frozen=True)
class _Result:
    """A node, what it states that it gives, and what its op gives; tensors by their types."""

    node: fx.Node
    stated: Any
    given: Any


def check_metadata(source: SpmdGraph, target: SpmdGraph) -> None:
    """Raise GraphError for the first false statement of either graph."""
    types, statements, points, results, refused = _known(source)
    _raise_first(results, refused, "source")
    nodes, symbols = _first_made(target, dict(types), set(statements)), tuple(_symbols(target))
    for point in points:  # inputs correspond by position, whatever their sizes are called
        sizes = dict(zip(symbols, point.values(), strict=False))
        _raise_first(_results(nodes, sizes), refused, "target")


def _raise_first(results: Iterable[_Result], refused: Set[_Failed], side: str) -> None:
    for one in results:
        if one.stated != one.given and one.given not in refused:
            raise GraphError(
                f"the metadata of %{one.node.name} in the {side} is not what its op gives",
                where=access.place(one.node),
                found=f"stated: {_text(one.stated)}; given by {one.node.target}: "
                f"{_text(one.given)}",
                remedy="set meta['val'] anew where arguments change, for example with "
                "torch.fx.passes.fake_tensor_prop.FakeTensorProp",
            )


@lru_cache(maxsize=4)  # every plan of a graph is checked against it
def _known(
    source: SpmdGraph,
) -> tuple[dict[Hashable, int], set[Hashable], list[Sizes], list[_Result], frozenset[_Failed]]:
    """Return what a source states, and what its ops give.

    Returns:
        Its types, numbered; its statements; sizes at which it runs: the hints, and others; what its
        distinct calls give there; the calls that their ops refuse.
    """
    types, statements, symbols = dict[Hashable, int](), set[Hashable](), _symbols(source)
    nodes = _first_made(source, types, statements)
    points: list[Sizes] = [{symbol: facts.hint for symbol, facts in symbols.items()}]
    results = _results(nodes, points[0])
    for sizes in _other_sizes(symbols):
        more = _results(nodes, sizes)
        if _failing(more) <= _failing(results):
            points.append(sizes)
            results += more
            break
    refused = frozenset(x.given for x in results if isinstance(x.given, _Failed))
    return types, statements, points, results, refused


def _failing(results: Iterable[_Result]) -> set[fx.Node]:
    return {x.node for x in results if isinstance(x.given, _Failed)}


def _first_made(
    graph: SpmdGraph, types: dict[Hashable, int], statements: set[Hashable]
) -> list[fx.Node]:
    """Return a call for each statement of a graph that was not made before, and add those.

    Args:
        graph: what states it.
        types: tensors and other values by their types -> numbers.
        statements: calls, with the types of their operands and results.
    """
    first_calls, type_of = [], dict[fx.Node, Any]()
    for node in graph.graph.nodes:
        if not access.has_result(node):
            continue
        plain = _plain(access.value(node))
        key = (plain, plain.strides) if isinstance(plain, _Typed) else plain
        type_of[node] = f"%{types.setdefault(key, len(types))}"
        if node.op != "call_function":
            continue
        read = access.map_operands(node, type_of.__getitem__)
        on_ranks = [constant.values for constant in access.rank_constants(node)]
        # as text, 1 and True differ
        statement = node.target, repr((read, type_of[node], on_ranks))
        if statement not in statements:
            statements.add(statement)
            first_calls.append(node)
    return first_calls


def _results(nodes: Iterable[fx.Node], sizes: Sizes) -> list[_Result]:
    """Return a result per call of which something can be said."""
    results = []
    with fake_tensor.FakeTensorMode(), torch.no_grad(), unlogged(FAKE_TENSORS):
        for node in nodes:
            try:
                stated = _sized(_plain(access.value(node)), sizes)
                written = access.map_operands(node, access.value)
                read = _sized(_plain(written), sizes)
                results.append(_Result(node, stated, _given(node.target, *read)))
                for rank in _extreme_ranks(node):
                    own = fx.node.map_aggregate(written, partial(access.on_rank, rank=rank))
                    given_there = _given(node.target, *_sized(_plain(own), sizes))
                    if isinstance(given_there, _Failed):  # shapes may differ between ranks
                        results.append(_Result(node, stated, given_there))
            except _UnknownError:
                continue
    return results


def _extreme_ranks(node: fx.Node) -> set[int]:
    """Return ranks on which a number that differs between ranks is the least or the greatest."""
    every = [constant.values for constant in access.rank_constants(node)]
    return {values.index(pick(values)) for values in every for pick in (min, max)}


def _given(op: Any, args: Any, kwargs: Any) -> Any:
    """Return what the op gives, or that it fails."""
    if not (isinstance(op, OpOverload) or op in PYTHON):
        raise _UnknownError
    try:
        return _plain(op(*_as_tensors(args), **dict(_as_tensors(kwargs))))
    except WITHOUT_DATA:
        raise _UnknownError from None
    except Exception as error:
        return _Failed((op, repr((args, kwargs))), str(error).partition("\n")[0])


def _plain(value: Any) -> Any:
    """Return tensors by their types, sizes by expressions, containers as tuples."""
    if isinstance(value, torch.Tensor):
        return _Typed(shape_key(value), value.dtype, tuple(map(size_key, value.stride())))
    if isinstance(value, dict):
        return tuple((name, _plain(x)) for name, x in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, torch.SymFloat | torch.SymBool):
        return _Symbolic(value.node.expr)
    return HOST if isinstance(value, torch.device) else size_key(value)


def _sized(value: Any, sizes: Sizes) -> Any:
    """Return what ``_plain`` gives with numbers in the place of size symbols."""
    if isinstance(value, _Typed):
        shape, strides = _sized(value.shape, sizes), _sized(value.strides, sizes)
        return _Typed(shape, value.dtype, strides)
    if isinstance(value, tuple):
        return tuple(_sized(x, sizes) for x in value)
    if isinstance(value, sympy.Expr):
        number = sympy.sympify(value.xreplace(sizes))
        if not number.is_Integer:
            raise _UnknownError  # read out of data
        return int(number)
    if isinstance(value, slice | _Symbolic | torch.Generator | fx.Node):
        raise _UnknownError
    return value


def _as_tensors(value: Any) -> Any:
    if isinstance(value, _Typed):
        return torch.empty_strided(value.shape, value.strides, dtype=value.dtype, device=HOST)
    return tuple(map(_as_tensors, value)) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    return f"({', '.join(map(_text, value))})" if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class _Symbol:
    """What a size symbol stood for at capture, what it may be at least and most, its step."""

    hint: int
    least: int
    most: int
    step: int

    def near(self, size: int) -> int:
        """Return a size that it may be."""
        within = min(max(size, self.least), self.most)
        above = -(-within // self.step) * self.step
        return above if above <= self.most else above - self.step


def _symbols(graph: SpmdGraph) -> dict[sympy.Symbol, _Symbol]:
    """Return the size symbols of a graph's inputs."""
    symbol_of: dict[sympy.Symbol, _Symbol] = {}
    for size in input_sizes(graph):
        if size.node.expr.is_Symbol:
            bounds = size.node.shape_env.var_to_range[size.node.expr]
            least = int(bounds.lower) if bounds.lower.is_Integer else -sys.maxsize
            most = int(bounds.upper) if bounds.upper.is_Integer else sys.maxsize
            symbol_of[size.node.expr] = _Symbol(access.concrete(size), least, most, step(size))
    return symbol_of


def _other_sizes(symbols: Mapping[sympy.Symbol, _Symbol]) -> Sequence[Sizes]:
    """Return sizes within their bounds: other than the hints, and distinct ones, first."""
    points = []
    for n in OTHER_SIZES if symbols else ():
        numbered = enumerate(symbols.items(), 1)
        points.append({s: facts.near(n * i) for i, (s, facts) in numbered})

    def rank(sizes: Sizes) -> tuple[int, int]:
        others = sum(size != symbols[s].hint for s, size in sizes.items())
        return -others, -len(set(sizes.values()))

    return sorted(points, key=rank)
