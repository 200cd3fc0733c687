"""Pauses of Python's cyclic garbage collection. The command line starts here, before PyTorch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Within it, no cyclic garbage is collected.

    Every full collection walks all graphs that are alive: with it, time would grow with the
    square of the number of layers.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
