"""Ops of which nothing is known but that they look like collectives, by their names or arguments.

To every analysis they are functions of what all ranks hold; that they communicate is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import fx

from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT
from compiler.ir.dialects.registry import called, entry_of
from compiler.ir.rules import RULES, meaning, opaque

COLLECTIVE = re.compile(
    r"all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|(?<![a-z])(a2a|psum)(?![a-z])",
    re.IGNORECASE,
)
GROUP = re.compile(r"(process_?)?group(_?name)?|comm|communicator|pg|world_size", re.IGNORECASE)
OWN = ("aten", "prims", "prim", "commplan", "_c10d_functional")
"""Namespaces of ops that do not communicate, or are known."""


def unknown_collectives(graph: fx.Graph) -> Iterator[tuple[fx.Node, str]]:
    """Yield every op without a rule that looks like a collective, and what makes it look so."""
    for node in graph.nodes:
        op = called(node)
        if op is None or op.namespace in OWN or node.target is WAIT or node.target in OPS:
            continue
        if node.target in RULES or entry_of(node) is not None or meaning(node) is not None:
            continue
        groups = [name for name in access.parameters(op)[0] if GROUP.fullmatch(name)]
        if COLLECTIVE.search(opaque.name_of(op)):
            yield node, "its name"
        elif groups:
            yield node, f"its argument {groups[0]!r}"


def remedy(node: fx.Node) -> str:
    """Return how to declare the op that a node calls."""
    op = called(node)
    assert op is not None, f"%{node.name} calls no op"
    return f'declare it: register_ops({{"{opaque.name_of(op)}": …}}), see docs/dialects.md'
