"""Walk from values to those they follow from."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx


def reached(
    starts: Iterable[fx.Node], following: Callable[[fx.Node], Iterable[fx.Node]]
) -> dict[fx.Node, None]:
    """Return ``starts`` and all that follows, in depth first; ``following`` is asked once each."""
    visited, waiting = dict[fx.Node, None](), [*starts]
    while waiting:
        node = waiting.pop()
        if node not in visited:
            visited[node] = None
            waiting += following(node)
    return visited
