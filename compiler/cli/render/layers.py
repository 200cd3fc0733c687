"""Collectives by the part of the model they belong to, and layers as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from compiler.analysis.layers import layer_index, layer_metadata
from compiler.analysis.statistics import CountedCollective
from compiler.ir.graph import SpmdGraph

EMBEDDING, HEAD, WHOLE = "embedding", "head", "whole graph"


def kinds_of_layers(graph: SpmdGraph) -> dict[int, str]:
    """Layer -> the section it belongs to: ``dense layers`` or ``sparse layers``."""
    return {layer.index: f"{layer.kind} layers" for layer in layer_metadata(graph)}


Sections = dict[str, dict[int | None, list[CountedCollective]]]
"""Section -> layer (None outside layers) -> its collectives."""


def section_names(layers: Iterable[int | None], kinds: Mapping[int, str]) -> Iterator[str]:
    """The section of each value, by their layers in program order; None: outside of layers.

    What precedes all layers is the embedding.
    """
    seen_layer = False
    for index in layers:
        seen_layer |= index in kinds
        outside = (HEAD if seen_layer else EMBEDDING) if kinds else WHOLE
        yield outside if index is None else kinds.get(index, outside)


def by_section(found: Sequence[CountedCollective], kinds: Mapping[int, str]) -> Sections:
    """Collectives in program order by section and layer."""
    grouped: Sections = {}
    layers = [layer_index(one.layer) for one in found]
    for one, index, name in zip(found, layers, section_names(layers, kinds), strict=True):
        grouped.setdefault(name, {}).setdefault(index, []).append(one)
    return grouped


def ranges_text(numbers: Iterable[int]) -> str:
    """``0-2, 5``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def layers_text(paths: Iterable[str]) -> str:
    """``model.layers.{3-44}.moe``: paths that differ in the layer alone are one."""
    found: dict[tuple[str, ...], list[int]] = {}
    for path in filter(None, paths):
        index, parts = layer_index(path), path.split(".")
        if index is None:
            found.setdefault((path,), [])
            continue
        at = next(i for i, part in enumerate(parts) if part.isdecimal())
        key = ".".join([*parts[:at], ""]), ".".join(["", *parts[at + 1 :]]).rstrip(".")
        found.setdefault(key, []).append(index)
    return ", ".join(
        f"{key[0]}{{{ranges_text(held)}}}{key[1]}" if len(set(held)) > 1 else
        key[0] + "".join(map(str, held[:1])) + "".join(key[1:])
        for key, held in found.items()
    )  # fmt: skip
