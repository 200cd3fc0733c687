"""Compare what the ranks traced, and mark the numbers that code computed from its rank.

A rank's trace is described without its numbers: ops, their static arguments, shapes and element
types, order. That much must be the same on all ranks. Integers and floats that differ become rank
constants. Symbols of sizes are numbered by first appearance; devices count without their index.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx

from compiler.capture.functionalize import NotRecordedError
from compiler.errors import CaptureError, DivergenceError
from compiler.ir import access, collectives
from compiler.ir.access import RankFloat, RankInt
from compiler.ir.rank_exchange import Exchange

Number = int | float
Place = tuple[int, int]
"""A number's place in a graph: index of the node, index among the node's numbers."""

SYMBOL = re.compile(r"\b(?:s|u|zuf|zf)\d+\b")


@dataclass(frozen=True)
class Row:
    """One node without its numbers, and the line of the model it comes from."""

    text: str
    line: str


@dataclass(frozen=True)
class Description:
    """What one rank traced.

    Attributes:
        rows: the nodes in order.
        numbers: per node, the integers and floats among its arguments.
        groups: group name on this rank -> its members, as ranks of the default group.
        labels: group name -> what its creator calls it (a mesh dimension), where known.
        uses: per collective in order, its group name.
    """

    rows: tuple[Row, ...]
    numbers: tuple[tuple[Number, ...], ...]
    groups: Mapping[str, tuple[int, ...]]
    labels: Mapping[str, str]
    uses: tuple[str, ...]

    @property
    def skeleton(self) -> str:
        """Return a digest of what must be the same on all ranks."""
        text = "\n".join(row.text for row in self.rows)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Ranks:
    """What is known of the ranks of the mesh.

    Attributes:
        size: how many there are.
        rank: this process's.
        descriptions: rank of the mesh -> what it traced, of those that could be asked.
        positions: rank of the default group -> rank of the mesh.
    """

    size: int
    rank: int
    descriptions: Mapping[int, Description]
    positions: Mapping[int, int]

    @cached_property
    def groups(self) -> Mapping[int, Mapping[str, tuple[int, ...]]]:
        """Return rank of the mesh -> group name -> its members, of groups within the mesh."""
        return {
            rank: {
                name: tuple(self.positions[member] for member in members)
                for name, members in description.groups.items()
                if set(members) <= set(self.positions)
            }
            for rank, description in self.descriptions.items()
        }

    @cached_property
    def constants(self) -> Mapping[Place, tuple[Number, ...] | None]:
        """Return place -> every rank's number where they differ, None where it is not inferred."""
        different = differing({rank: d.numbers for rank, d in self.descriptions.items()})
        return {place: _of_all(values, self.size) for place, values in different.items()}


def describe(
    graph: fx.Graph, groups: Mapping[str, tuple[int, ...]], labels: Mapping[str, str]
) -> Description:
    """Describe a rank's graph with its resolved groups."""
    index = {node: i for i, node in enumerate(graph.nodes)}
    symbols: dict[str, str] = {}
    rows: list[Row] = []
    numbers: list[tuple[Number, ...]] = []
    uses: list[str] = []
    for node in graph.nodes:
        in_row: list[Number] = []
        group = collectives.group_argument(node)

        def leaf(item: Any, in_row: list[Number] = in_row) -> str:
            if isinstance(item, fx.Node):
                return f"%{index[item]}"
            if isinstance(item, int | float) and not isinstance(item, bool):
                in_row.append(item)
                return "float" if isinstance(item, float) else "int"
            return f"device {item.type}" if isinstance(item, torch.device) else repr(item)

        call = access.call(node)
        if group is not None:
            uses.append(str(collectives.group_of(node)))
            call = access.with_argument(node, group, "group")
        written = fx.node.map_aggregate(call, leaf)
        text = f"{node.op} {node.target} {written} -> {_type(node.meta.get('val'))}"
        rows.append(Row(_renumber(text, symbols), access.source_line(node)))
        numbers.append(tuple(in_row))
    return Description(tuple(rows), tuple(numbers), groups, labels, tuple(uses))


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_type, value))})"
    return type(value).__name__


def _renumber(text: str, symbols: dict[str, str]) -> str:
    return SYMBOL.sub(lambda m: symbols.setdefault(m[0], f"n{len(symbols)}"), text)


def gathered(
    exchange: Exchange, description: Description | None, failure: str, bail: str = ""
) -> dict[int, Description]:
    """Gather all ranks' descriptions, rows only where they differ; failed ranks take part, too.

    Args:
        exchange: the ranks.
        description: this rank's, None if it has none.
        failure: why this rank could not trace the model.
        bail: why this rank could not record it, where it may be traced by other means.

    Raises:
        NotRecordedError: a rank has a reason for ``bail``, and none has failed.
        CaptureError: a rank failed to trace the model, or the ranks traced different graphs.
    """
    mine = None
    if description is not None:
        mine = description.skeleton, replace(description, rows=())
    everyone = exchange.gather((failure, bail, mine))
    if failed := {rank: text for rank, (text, _, _) in enumerate(everyone) if text}:
        rank, text = next(iter(failed.items()))
        raise CaptureError(
            f"capture failed on {ranks_text(failed)}",
            found=f"rank {rank}: {text}",
            remedy="make the model traceable on every rank",
        )
    if bailed := {rank: text for rank, (_, text, _) in enumerate(everyone) if text}:
        rank, text = next(iter(bailed.items()))
        raise NotRecordedError(text if len(bailed) == len(everyone) else f"{text} on rank {rank}")
    assert description is not None, "a rank without a description reports a failure"
    summaries = [summary for *_, summary in everyone if summary is not None]
    if len({skeleton for skeleton, _ in summaries}) > 1:
        check_rows(dict(enumerate(exchange.gather(description.rows))))
    return {rank: without_rows for rank, (_, without_rows) in enumerate(summaries)}


def check_rows(rows: Mapping[int, Sequence[Row]]) -> None:
    """Refuse ranks that traced different ops, at the first place where they do.

    Args:
        rows: rank -> rows of its graph.
    """
    length = max(map(len, rows.values()))
    for i in range(length):
        here = {rank: r[i] if i < len(r) else Row("nothing", "") for rank, r in rows.items()}
        if len({row.text for row in here.values()}) == 1:
            continue
        raise DivergenceError(
            "the ranks do not run the same program",
            where=next((row.line for row in here.values() if row.line), f"value {i}"),
            found=by_value({rank: row.text for rank, row in here.items()}),
            remedy="only numbers may depend on the rank: make the model issue the same ops, "
            "in the same order and on the same shapes, on every rank",
        )


def by_value(values: Mapping[int, object]) -> str:
    """Return ``ranks 0, 2: this; rank 1: that`` for rank -> value, the most common first."""
    ranks: dict[object, list[int]] = {}
    for rank, value in values.items():
        ranks.setdefault(value, []).append(rank)
    common_first = sorted(ranks.items(), key=lambda item: -len(item[1]))
    return "; ".join(f"{ranks_text(who)}: {value}" for value, who in common_first)


def ranks_text(ranks: Any) -> str:
    """Return ``rank 1`` or ``ranks 0, 2, 3``."""
    listed = list(ranks)
    return f"rank{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"


def differing(
    numbers: Mapping[int, Sequence[tuple[Number, ...]]],
) -> dict[Place, dict[int, Number]]:
    """Find the numbers in which ranks that run the same program differ: place -> rank -> number."""
    (_, first), *others = numbers.items()
    numbers_of: dict[Place, dict[int, Number]] = {}
    for i, number in enumerate(first):
        if all(other[i] == number for _, other in others):
            continue
        for j in range(len(number)):
            values = {rank: listed[i][j] for rank, listed in numbers.items()}
            if len({repr(value) for value in values.values()}) > 1:
                numbers_of[i, j] = values
    return numbers_of


def _of_all(numbers: Mapping[int, Number], size: int) -> tuple[Number, ...] | None:
    if len(numbers) == size:
        return tuple(numbers[rank] for rank in range(size))
    return affine(numbers, size)


def affine(numbers: Mapping[int, Number], size: int) -> tuple[Number, ...] | None:
    """Return ``a + b * rank`` for all ranks, through the known ones; None if none fits."""
    (low, at_low), *_, (high, at_high) = sorted(numbers.items())
    step = (at_high - at_low) / (high - low)
    if all(isinstance(value, int) for value in numbers.values()):
        if not step.is_integer():
            return None
        step = (int(at_high) - int(at_low)) // (high - low)
    values = tuple(at_low + step * (rank - low) for rank in range(size))
    return values if all(values[rank] == value for rank, value in numbers.items()) else None


def mark(graph: fx.Graph, rank: int, constants: Mapping[Place, Sequence[Number] | None]) -> None:
    """Replace numbers in place by rank constants; ``constants`` lists each rank's value."""
    marked = {i for i, _ in constants}
    for i, node in enumerate(graph.nodes):
        if i in marked:
            _mark_node(node, rank, (constants.get((i, j)) for j in itertools.count()))


def _mark_node(node: fx.Node, rank: int, places: Iterator[Sequence[Number] | None]) -> None:
    """Replace those numbers of a node of which every rank's value is given."""

    def leaf(item: Any) -> Any:
        if not isinstance(item, int | float) or isinstance(item, bool):
            return item
        if (values := next(places)) is None:
            return item
        if isinstance(item, int):
            return RankInt(int(values[rank]), tuple(map(int, values)))
        return RankFloat(values[rank], tuple(map(float, values)))

    node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), leaf)
