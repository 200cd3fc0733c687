"""Comments that say where values come from: ``loc(model.py:26)  layers.0.attn  %add_197``.

Written behind values when a graph is saved, and read again: source line, layer, and the names of
the nodes, which messages and remarks use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import fx

ORIGIN = re.compile(
    r"^ *%(?P<number>\d+)[: ].*// loc\((?:(?P<file>[^()\n]+):(?P<line>\d+))?\)"
    r"(?:  (?P<layer>[\w.]+))?(?:  (?P<names>%\w+(?: %\w+)*))?$",
    re.MULTILINE,
)


def origin(source: str, layer: str, nodes: tuple[fx.Node, ...] = ()) -> str:
    """Return the comment of a value, from what is known of it."""
    names = " ".join(f"%{node.name}" for node in nodes)
    where = f"loc({source})" if source or names else ""
    return "  ".join(filter(None, (where, layer, names)))


def restore(text: str, lines: Mapping[int, tuple[fx.Node, ...]]) -> None:
    """Give the nodes of each line of ``text`` what its comment says of them."""
    for match in ORIGIN.finditer(text):
        nodes = lines.get(int(match["number"]), ())
        for node in nodes:
            if match["file"]:
                node.meta["stack_trace"] = f'File "{match["file"]}", line {match["line"]}'
            if match["layer"]:
                node.meta["nn_module_stack"] = {"": (match["layer"], "")}
        for node, name in zip(nodes, (match["names"] or "").split(), strict=False):
            if node.op == "call_function":
                node._rename(name[1:])
