"""Layer metadata: which decoder layers are sparse (routed experts) and which are dense.

Taken from the caller, else from the model's config in the conventions of Hugging Face, else read
off the graph: a layer that ranks the scores of its tokens (topk, sort) routes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import fx

from compiler.errors import CommPlanError
from compiler.ir import access
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules import opaque

KINDS = ("dense", "sparse")
ROUTING = {torch.ops.aten.topk.default, torch.ops.aten.sort.default, torch.ops.aten.sort.stable}


@dataclass(frozen=True)
class LayerMetadata:
    """One decoder layer.

    Attributes:
        index: its number in the model.
        kind: "dense" or "sparse".
        previous: kind of the layer before, None for the first.
        next: kind of the layer after, None for the last.
    """

    index: int
    kind: str
    previous: str | None = None
    next: str | None = None


def layer_index(path: str) -> int | None:
    """Number of the layer that the module at ``path`` belongs to, None if to no layer."""
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    return int(match[1]) if match else None


def layer_of(node: fx.Node) -> int | None:
    """Number of the layer that ``node`` comes from, None if from no layer."""
    return layer_index(access.layer_path(node))


def layer_metadata(
    graph: SpmdGraph,
    *,
    config: object = None,
    layers: Sequence[LayerMetadata | str] | None = None,
) -> tuple[LayerMetadata, ...]:
    """Metadata of every layer of ``graph``, by index.

    Args:
        graph: tells which layers there are.
        config: the model's; read are ``mlp_layer_types``, ``moe_layers_enum``,
            ``first_k_dense_replace`` and ``decoder_sparse_step``, the first that there is.
        layers: kinds of all layers in order, or metadata of some; overrides config.

    Raises:
        CommPlanError: ``layers`` names a layer or a kind there is not.
    """
    routes: dict[int, bool] = {}
    for node in graph.graph.nodes:
        if (index := layer_of(node)) is not None:
            routes[index] = routes.get(index, False) or _routes(node)
    kinds = {index: KINDS[routed] for index, routed in sorted(routes.items())}
    kinds |= {i: k for i, k in _from_config(config).items() if i in kinds}
    kinds |= _given(layers or (), kinds)
    order = sorted(kinds)
    beside = [None, *map(kinds.get, order), None]
    around = zip(order, beside[:-2], beside[2:], strict=True)
    return tuple(LayerMetadata(i, kinds[i], before, after) for i, before, after in around)


def _routes(node: fx.Node) -> bool:
    """Return whether a call chooses experts for rows, or sends rows to those of its own choice."""
    op = opaque.op_called(node.target, next(iter(node.args), None))
    claim = opaque.DECLARED.get(opaque.name_of(op)) if op is not None else None
    return node.target in ROUTING or (claim is not None and claim.routes)


def _from_config(config: object) -> dict[int, str]:
    listed = getattr(config, "mlp_layer_types", None)
    if listed is not None:
        return {i: str(kind) for i, kind in enumerate(listed) if kind in KINDS}
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int):
        return {}
    listed = getattr(config, "moe_layers_enum", None)
    if isinstance(listed, str):
        listed = [int(i) for i in listed.split(",") if i.strip()]
    if listed is not None:
        return {i: KINDS[i in listed] for i in range(count)}
    first = getattr(config, "first_k_dense_replace", None)
    if isinstance(first, int):
        return {i: KINDS[i >= first] for i in range(count)}
    step = getattr(config, "decoder_sparse_step", None)
    if isinstance(step, int) and step > 0:
        dense = getattr(config, "mlp_only_layers", None) or ()
        return {i: KINDS[i not in dense and (i + 1) % step == 0] for i in range(count)}
    return {}


def _given(layers: Sequence[LayerMetadata | str], kinds: dict[int, str]) -> dict[int, str]:
    stated: dict[int, str] = {}
    for position, layer in enumerate(layers):
        index, kind = (
            (layer.index, layer.kind) if isinstance(layer, LayerMetadata) else (position, layer)
        )
        if kind not in KINDS:
            raise CommPlanError(
                f"layers= gives layer {index} a kind there is not",
                found=repr(kind),
                remedy=f"one of {', '.join(KINDS)}",
            )
        if index not in kinds:
            raise CommPlanError(
                f"layers= names layer {index}, which the graph does not have",
                found=f"the graph has layers {sorted(kinds)}",
                remedy="number layers as the model's modules are",
            )
        stated[index] = kind
    return stated


def ranges_text(numbers: Iterable[int]) -> str:
    """Return ``0-2, 5``."""
    counted = enumerate(sorted(set(numbers)))
    runs = [[n for _, n in run] for _, run in groupby(counted, lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def layers_text(paths: Iterable[str]) -> str:
    """Return ``model.layers.{3-44}.moe``: paths that differ in the layer alone are one."""
    layers: dict[tuple[str, ...], list[int]] = {}
    for path in filter(None, paths):
        before, *rest = re.split(r"(?:^|(?<=\.))(\d+)(?=\.|$)", path, maxsplit=1)
        layers.setdefault((before, *rest[1:]), []).extend(map(int, rest[:1]))
    texts = {ends: ranges_text(numbers) for ends, numbers in layers.items()}
    return ", ".join(
        ends[0] + (f"{{{text}}}" if len(set(layers[ends])) > 1 else text) + "".join(ends[1:])
        for ends, text in texts.items()
    )
