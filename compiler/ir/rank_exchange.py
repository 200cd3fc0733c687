"""How the ranks of one program talk to each other at compile time, as an interface."""

from __future__ import annotations

from typing import Protocol, TypeVar

T = TypeVar("T")


class Exchange(Protocol):
    """All ranks of a mesh, each in its own process. Rank r of the mesh is member r."""

    @property
    def size(self) -> int:
        """Return the number of ranks."""

    @property
    def rank(self) -> int:
        """Return this process's rank in the mesh."""

    def gather(self, item: T) -> list[T]:
        """Return every rank's ``item``, by rank. All ranks must call it, in the same order."""
