"""What ranks must agree on: inputs, plans, and in debug mode every call."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import networkx
import torch

from compiler.capture.digest import digests
from compiler.capture.rank_traces import by_value, ranks_text
from compiler.errors import DivergenceError, PlacementError, PlanError
from compiler.ir.collectives import all_group_names
from compiler.ir.graph import SpmdGraph
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Varying
from compiler.ir.rank_exchange import Exchange
from compiler.runtime.group_exchange import GroupExchange


def compare_inputs(
    exchange: Exchange,
    tensors: Mapping[str, torch.Tensor],
    mesh: Mesh | None = None,
    along: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Raise unless ranks hold the same ``tensors``; all ranks must call it.

    Args:
        exchange: the ranks.
        tensors: what this rank holds.
        mesh: of the ranks.
        along: tensor -> axes along which it is compared; without it all ranks are alike.

    Raises:
        PlacementError: names the first tensor that differs, and the ranks.
    """
    everyone = exchange.gather(digests(tensors))
    for name in tensors:
        digest_by_rank = [of_rank.get(name) for of_rank in everyone]
        for where, group in _groups(exchange, name, mesh, along):
            digest_of = {rank: digest_by_rank[rank] for rank in group}
            values = list(digest_of.values())
            common = max(values, key=values.count)  # of several, the first: all ranks say the same
            others = [rank for rank, digest in digest_of.items() if digest != common]
            if others:
                differ = f"differ{'s' if len(others) == 1 else ''} from the others"
                raise PlacementError(
                    f"input {name!r} must be the same on all ranks{where}, and is not",
                    found=f"{ranks_text(others)} {differ}",
                    remedy="give every rank the same input, or declare its placement with inputs="
                    + _varying(name, digest_by_rank, mesh),
                )


def _varying(name: str, digest_of: Sequence[str | None], mesh: Mesh | None) -> str:
    """What says that ranks differ along the axes along which they do; nothing without a mesh."""
    axes = [
        axis for axis, groups in (mesh.groups if mesh else {}).items()
        if any(len({digest_of[rank] for rank in group}) > 1 for group in groups.ranks)
    ]  # fmt: skip
    return str({name: dict.fromkeys(axes, Varying())}) if axes else ""


def _groups(
    exchange: Exchange, name: str, mesh: Mesh | None, along: Mapping[str, Iterable[str]] | None
) -> Iterator[tuple[str, Sequence[int]]]:
    """The ranks that are to hold the same, and what to call them."""
    if mesh is None or along is None or set(along[name]) == set(mesh.axes):
        yield "", range(exchange.size)
        return
    for axis in along[name]:
        for group in mesh.groups[axis].ranks:
            yield f" of axis {axis!r}", group


def compare_plans(
    exchange: Exchange,
    digest: str,
    machine: str | None,
    options: Mapping[str, object] | None = None,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Raise unless all ranks hold the same plans; all ranks must call it.

    Args:
        exchange: the ranks.
        digest: of this rank's plans.
        machine: name of the machine that they are made for; None: they compare by bytes.
        options: of this rank, which must agree whatever the plans are.
        sizes: of the arguments of the call that the plans were first made for.

    Raises:
        PlanError: names the ranks that differ, and their options, machines or sizes if those do.
    """
    everyone = exchange.gather((digest, machine, options or {}, sizes or {}))
    first, planned_for, *_ = everyone[0]
    others = {rank: named for rank, (plan, named, *_) in enumerate(everyone) if plan != first}
    if difference := _first_difference([plan for _, _, plan, _ in everyone]):
        raise PlanError(
            "ranks optimize with different options",
            found=difference,
            remedy="call optimize_allreduce with the same options on every rank",
        )
    for rank, named in others.items():
        if named != planned_for:
            raise PlanError(
                "ranks plan for different machines",
                found=f"rank 0 plans for {planned_for or 'no machine'}, "
                f"rank {rank} for {named or 'no machine'}",
                remedy="pass machine= by name, the same on every rank: by default each rank takes "
                "the machine that has its own GPU",
            )
    if others and (difference := _first_difference([plan for *_, plan in everyone])):
        raise PlanError(
            "ranks hold different plans: the sizes they were first called with differ",
            found=difference,
            remedy="make the first call, or example_inputs=, with the same sizes on every rank",
        )
    if others:
        raise PlanError(
            "ranks hold different plans",
            found=f"{ranks_text(list(others))} differ{'s' if len(others) == 1 else ''} from rank 0",
            remedy="run the same version of commplan and torch, with the same options, on every "
            "rank",
        )


def _first_difference(everyone: Sequence[Mapping[str, object]]) -> str:
    """What differs between the first rank and another, empty if nothing does."""
    first = everyone[0]
    for rank, items in enumerate(everyone):
        for name in dict.fromkeys((*first, *items)):
            if first.get(name) != items.get(name):
                return (
                    f"{name} is {first.get(name)!r} on rank 0, {items.get(name)!r} on rank {rank}"
                )
    return ""


def connected_ranks(graph: SpmdGraph) -> list[tuple[int, ...]]:
    """Return the ranks that collectives of a graph connect, also over several groups."""
    ranks: networkx.Graph[int] = networkx.Graph()
    ranks.add_nodes_from(range(graph.mesh.size))
    for name in all_group_names(graph.graph):
        for group in graph.mesh.group(name).ranks:
            networkx.add_path(ranks, group)
    return [tuple(sorted(part)) for part in networkx.connected_components(ranks)]


def text_of_tensor(tensor: torch.Tensor) -> str:
    """Return what must be the same of an argument on all ranks, besides its values."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind}{list(tensor.shape)}, strides {tensor.stride()}, on {tensor.device.type}"


def compare_calls(
    exchange: GroupExchange,
    connected: Collection[Sequence[int]],
    plans: str,
    arguments: Mapping[str, str],
) -> None:
    """Raise unless ranks that collectives connect make the same call; all ranks must call it.

    Args:
        exchange: the ranks.
        connected: groups of ranks.
        plans: digest of the plans that the graph of the call was made for.
        arguments: name of a tensor -> its dtype, shape, strides and kind of device.

    Raises:
        DivergenceError: names the first argument that differs, and the ranks.
        ExchangeError: a rank makes another call than this, or none.
    """
    mine = {"the plan": plans, **arguments}
    everyone = exchange.during("comparing the arguments of a call").gather(mine)
    for group in connected:
        for name in dict.fromkeys(name for rank in group for name in everyone[rank]):
            texts = {rank: everyone[rank].get(name, "not an argument") for rank in group}
            if len(set(texts.values())) > 1:
                raise DivergenceError(
                    "the ranks do not make the same call",
                    where=f"call {exchange.roll_call.calls}, {name}",
                    found=by_value(texts),
                    remedy="call the model with the same sizes, in the same order, on every rank",
                )
