"""Caches of transformers: which objects are caches, and which of their numbers count tokens.

transformers is optional. A cache can only exist where ``transformers.cache_utils`` was imported, so
the classes are looked up there and the package is never imported.
"""

from __future__ import annotations

import inspect
import sys
from functools import lru_cache

import torch
from torch.utils._python_dispatch import _disable_current_modes

BASES = ("Cache", "CacheLayerMixin", "LinearAttentionCacheLayerMixin", "DummyLayer")


@lru_cache(maxsize=1024)
def is_cache_class(kind: type) -> bool:
    """Return whether a class is that of caches or their layers, which hold all in ``__dict__``."""
    module = sys.modules.get("transformers.cache_utils")
    bases = tuple(getattr(module, name) for name in BASES if hasattr(module, name))
    return issubclass(kind, bases) and not any(vars(c).get("__slots__") for c in kind.__mro__)


@lru_cache(maxsize=1024)
def counters(kind: type) -> frozenset[str]:
    """Return the attributes that count tokens where they are ints: ``get_seq_length`` reads them.

    Other ints, such as the size of a sliding window, are constants.
    """
    methods = (vars(c).get("get_seq_length") for c in kind.__mro__)
    codes = (getattr(inspect.unwrap(m), "__code__", None) for m in methods if m is not None)
    return frozenset(name for code in codes if code is not None for name in code.co_names)


@lru_cache(maxsize=4096)
def carrier(count: int, device: torch.device | None) -> torch.Tensor:
    """Return a tensor without elements whose first size is ``count``: [count, 0], int64.

    As the size of an argument, a count becomes a symbol like any other size. Equal counts have one
    carrier, so they become one symbol: layers of a cache count the same tokens.

    Args:
        count: 0 or more.
        device: of the cache, so that a graph on it has no inputs elsewhere; the CPU if not known.
    """
    with _disable_current_modes(), torch.inference_mode(False):
        return torch.empty(count, 0, dtype=torch.int64, device=device or "cpu")
