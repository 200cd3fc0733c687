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
"""Op of the namespaces c10d and _c10d_functional -> kind."""
FUSED = {
    "all_reduce_add_rms_norm": ("all_reduce",),
    "reduce_scatter_add_rms_norm_all_gather": ("reduce_scatter", "all_gather"),
}
"""Op of the namespace commplan -> kinds of the collectives that it stands for."""
SENT = ("dispatch_rows", "combine_rows")
"""Ops of the namespace commplan that are one collective each."""


@dataclass
class Counts:
    """What ran, per kind.

    Attributes:
        collectives: how many.
        payload_bytes: of all of them.
        fused: how many of them are part of an op that also adds and normalizes.
    """

    collectives: Counter[str] = field(default_factory=Counter)
    payload_bytes: Counter[str] = field(default_factory=Counter)
    fused: Counter[str] = field(default_factory=Counter)


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
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if func.namespace in ("c10d", "_c10d_functional") or name in SENT:
            kinds = (NAMES[name],) if name in NAMES else ()
            self._count(kinds, (args, kwargs, result))
        elif func.namespace == "commplan" and name in FUSED:
            self._count(FUSED[name], (args, kwargs, result), fused=True)
        return result

    def _count(self, kinds: tuple[str, ...], tree: Any, *, fused: bool = False) -> None:
        """Counts a collective of each kind, with the largest tensor of ``tree`` as payload."""
        leaves = torch.utils._pytree.tree_leaves(tree)
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        if any(isinstance(x, FakeTensor) for x in tensors):
            return
        for kind in kinds:
            self.counts.collectives[kind] += 1
            self.counts.payload_bytes[kind] += max((x.nbytes for x in tensors), default=0)
            self.counts.fused[kind] += fused
