"""What distinguishes a rewritten graph in Inductor's FX graph cache, besides its own text."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphPass


@cache
def sources_digest() -> str:
    """Digest of the code that plans and rewrites."""
    digest = hashlib.blake2b(digest_size=16)
    for package in ("compiler", "passes"):
        for path in sorted((Path(__file__).parents[2] / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class CacheKey(CustomGraphPass):
    """A pass that changes nothing: its ``uuid`` goes into the cache key.

    Args:
        text: what the graph was planned for.
        before: the pass that the user has set, which still runs.
    """

    def __init__(self, text: str, before: Any = None) -> None:
        self.text, self.before = text, before

    def __call__(self, graph: fx.Graph) -> None:
        """Run the user's passes."""
        for step in self._steps:
            step(graph)

    def uuid(self) -> Any:
        """Equal for equal plans by equal code.

        None, which keeps the graph out of the cache, if the user's pass has none.
        """
        theirs = [
            step.uuid() if isinstance(step, CustomGraphPass) else None for step in self._steps
        ]
        if not all(theirs):
            return None
        return [sources_digest(), self.text, *theirs]

    @property
    def _steps(self) -> tuple[Any, ...]:
        if self.before is None:
            return ()
        return tuple(self.before) if isinstance(self.before, list | tuple) else (self.before,)


def keyed(text: str) -> Any:
    """Within it, Inductor's cache tells graphs of different ``text`` apart."""
    own = CacheKey(text, config.post_grad_custom_pre_pass)
    return torch._inductor.config.patch(post_grad_custom_pre_pass=own)
