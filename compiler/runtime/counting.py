"""Counts the collectives that really run, for tests, demos and benchmarks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = {
    "all_reduce": "all_reduce", "all_reduce_": "all_reduce", "allreduce_": "all_reduce",
    "all_gather_into_tensor": "all_gather", "_allgather_base_": "all_gather",
    "allgather_": "all_gather", "reduce_scatter_tensor": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter", "all_to_all_single": "all_to_all",
    "alltoall_base_": "all_to_all", "broadcast": "broadcast", "broadcast_": "broadcast",
    "dispatch_rows": "all_to_all", "combine_rows": "all_to_all",
}  # fmt: skip
"""Op of the namespaces c10d, _c10d_functional and commplan -> kind."""


@dataclass
class Counts:
    """What ran: per kind, how many collectives and how many payload bytes."""

    collectives: Counter[str] = field(default_factory=Counter)
    payload_bytes: Counter[str] = field(default_factory=Counter)


class count_collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]  # noqa: N801
    """Within it, every collective this thread starts is counted, but not those it only traces.

    Example: ``with count_collectives() as counts: model(x)``; then ``counts.collectives``.
    """

    def __init__(self) -> None:
        """Starts from zero."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counts()

    def __enter__(self) -> Counts:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self.counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Counts collectives, and runs everything."""
        if func.namespace in ("c10d", "_c10d_functional", "commplan"):
            kind = NAMES.get(func._schema.name.split("::")[1])
            leaves = torch.utils._pytree.tree_leaves((args, kwargs))
            tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
            traced = any(isinstance(x, FakeTensor) for x in tensors)
            if kind is not None and not traced:
                sizes = [x.nbytes for x in tensors]
                self.counts.collectives[kind] += 1
                self.counts.payload_bytes[kind] += max(sizes, default=0)
        return func(*args, **(kwargs or {}))
