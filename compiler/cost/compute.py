"""What a kernel takes: its launch, and the longer of moving its bytes and doing its products.

    t = launch + max(bytes read and written / memory bandwidth, FLOPs / matmul rate)

Bytes are those of distinct tensor operands, as they are stored, and of results; operands of which
only the shape matters are not read, and what picks elements by index reads no more than it writes.
FLOPs are two per element of the result and of the dimensions that a product contracts, read off
the factor labels of the op's rule; attention, whose rule has no labels for what it contracts, is
its two products. Ops without a rule count by their bytes alone. A result that shares its operand's
storage costs nothing, launch included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from compiler.cost.machine import Machine
from compiler.cost.tables import Launch, MachineError
from compiler.cost.units import PS_PER_US
from compiler.ir import access
from compiler.ir.rules import Call, Meaning, Term, meaning_of
from compiler.ir.rules.builders import overloads
from compiler.ir.rules.meaning import size_key

Sizes = tuple[tuple[str, int], ...]
"""Values of the graph's size symbols, by name."""

PROBE_SIZE = 16
"""What symbols stand for where only the layout of a tensor matters."""
MOST_KNOWN = 1 << 14
_known: dict[tuple[Call, tuple[Any, ...]], Work] = {}
"""The work of calls on operands of some layout. It holds no nodes: they keep their graph alive."""


@dataclass(frozen=True)
class Extent:
    """A box of elements.

    Attributes:
        sizes: per dimension, ints and sympy expressions.
        factor: bytes, or operations, per element.
        by_rows: whether it grows with the number of rows, and shrinks where rows are sharded.
    """

    sizes: tuple[Any, ...]
    factor: int
    by_rows: bool

    def total(self, sizes: Sizes, shards: int) -> int:
        """Bytes, or operations, of the largest of ``shards`` parts."""
        whole = self.factor * math.prod(evaluated(size, sizes) for size in self.sizes)
        return -(-whole // shards) if self.by_rows else whole


@dataclass(frozen=True)
class Work:
    """What one call does, for any number of tokens. Equal for calls that do the same.

    Attributes:
        reads: one box per distinct operand.
        picked: operands of which no more is read than is written.
        writes: one box per result.
        products: operations of matrix products.
        dtype: element type of the products' operands.
    """

    reads: tuple[Extent, ...] = ()
    picked: tuple[Extent, ...] = ()
    writes: tuple[Extent, ...] = ()
    products: tuple[Extent, ...] = ()
    dtype: torch.dtype | None = None

    @property
    def is_free(self) -> bool:
        """Whether no kernel runs."""
        return not self.writes

    def bytes_moved(self, sizes: Sizes, shards: int = 1) -> int:
        """Bytes read and written."""
        written = sum(box.total(sizes, shards) for box in self.writes)
        picked = sum(min(box.total(sizes, 1), written) for box in self.picked)
        return written + picked + sum(box.total(sizes, shards) for box in self.reads)

    def flop(self, sizes: Sizes, shards: int = 1) -> int:
        """Floating-point operations of matrix products."""
        return sum(box.total(sizes, shards) for box in self.products)

    def time_ps(
        self, sizes: Mapping[str, int], machine: Machine, *, shards: int = 1, launch: Launch | str
    ) -> int:
        """What the kernel takes on one rank, in picoseconds.

        Args:
            sizes: size symbol -> value, such as {"s0": 2048}.
            machine: the machine.
            shards: over how many ranks the rows are divided; the launch is not.
            launch: eager or in a CUDA graph.

        Raises:
            MachineError: a size symbol without a value, or a number the machine does not state.
        """
        return _time_ps(self, tuple(sorted(sizes.items())), machine, shards, Launch(launch))


FREE = Work()
ALLOCATIONS = frozenset(
    overloads(
        "empty.memory_format", "empty_like", "new_empty", "empty_strided", "new_empty_strided",
        "empty_permuted",
    )
)  # fmt: skip
"""Ops that write nothing."""


@lru_cache(maxsize=1 << 16)
def _time_ps(work: Work, sizes: Sizes, machine: Machine, shards: int, launch: Launch) -> int:
    if work.is_free:
        return 0
    moving = work.bytes_moved(sizes, shards) * PS_PER_US // machine.memory_bytes_per_us
    flop, multiplying = work.flop(sizes, shards), 0
    if flop:
        assert work.dtype is not None, "products have an element type"
        multiplying = flop * PS_PER_US // machine.matmul_flop_per_us(work.dtype)
    return machine.launch_ps(launch) + max(moving, multiplying)


@lru_cache(maxsize=1 << 14)
def evaluated(size: Any, sizes: Sizes) -> int:
    """A size with its symbols replaced.

    Raises:
        MachineError: a symbol without a value.
    """
    if isinstance(size, int):
        return size
    values = dict(sizes)
    missing = sorted(str(s) for s in size.free_symbols if str(s) not in values)
    if missing:
        raise MachineError(
            f"size symbol {missing[0]} has no value",
            where=f"size {size}",
            found=f"values of {', '.join(values) or 'no symbols'}",
            remedy="give every size symbol of the graph a value",
        )
    return int(size.subs({s: values[str(s)] for s in size.free_symbols}))


def work(node: fx.Node) -> Work:
    """What the node's kernel does; nothing for inputs, outputs, views and numbers."""
    if not isinstance(node.target, OpOverload) or not access.is_operand(node):
        return FREE
    operands, layouts = access.operands(node), list[tuple[Any, ...] | None]()
    for i, x in enumerate(operands):
        strides = tuple(map(size_key, access.strides(x))) if access.is_tensor(x) else ()
        layouts.append(strides if operands.index(x) == i else None)
    key = Call.of(node), tuple(layouts)
    if key not in _known:
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[key] = _work(node, *key)
    return _known[key]


def _work(node: fx.Node, call: Call, layouts: tuple[Any, ...]) -> Work:
    """What a call does; ``layouts``: strides per operand, None for one that was listed before."""
    if call.target in ALLOCATIONS or _shares_storage(node):
        return FREE
    rule = meaning_of(call)
    picked = _picked(rule) if rule else frozenset()
    used = rule.reads if rule else None
    reads: list[Extent] = []
    gathers: list[Extent] = []
    for i, layout in enumerate(layouts):
        unread = used is not None and i not in used
        if unread or layout is None or call.dtypes[i] is None:
            continue
        stored = zip(call.shapes[i], layout, strict=True)
        shape = tuple(size for size, stride in stored if stride != 0)
        (gathers if i in picked else reads).append(_box(call, shape, call.dtypes[i]))
    writes = [
        _box(call, shape, dtype)
        for shape, dtype in zip(call.result_shapes, call.result_dtypes, strict=True)
        if dtype is not None
    ]
    products, dtype = _products(call, rule) if rule else ((), None)
    return Work(tuple(reads), tuple(gathers), tuple(writes), products, dtype)


def _box(call: Call, shape: tuple[Any, ...], dtype: torch.dtype | None) -> Extent:
    assert dtype is not None, "a tensor has an element type"
    return Extent(shape, dtype.itemsize, _by_rows(call, shape))


def _by_rows(call: Call, shape: tuple[Any, ...]) -> bool:
    """Whether a box is cut along with the rows of the result.

    Rows are what has a symbolic size; where nothing has, what is as long as the result is.
    """
    if any(not isinstance(s, int) for every in (*call.shapes, *call.result_shapes) for s in every):
        return any(not isinstance(size, int) for size in shape)
    return bool(shape and call.result) and shape[0] == call.result[0]


def _picked(rule: Meaning) -> frozenset[int]:
    """Operands read at places that another operand tells, one element per element of the result.

    Their term depends on an index whose factors are the result's and not theirs.
    """
    if rule.dims is None or rule.terms is None:
        return frozenset()
    (result, *_), labels = rule.dims.results, rule.dims.operands
    return frozenset(
        x
        for term in rule.terms
        if len(term.operands) == 1 and term.fixed
        for x in term.operands
        for names in [{name for i in term.fixed for name in labels[i] if name is not None}]
        if names and names <= set(result) and not names & set(labels[x])
    )


def _products(call: Call, rule: Meaning) -> tuple[tuple[Extent, ...], torch.dtype | None]:
    """Two operations per multiply and add, and the element type they work on."""
    if {"query", "key", "value"} <= call.arguments.keys():
        q, k, v = (call.operand(name) for name in ("query", "key", "value"))
        scores = (*call.shapes[q][:-1], call.shapes[k][-2])
        sizes = [(*scores, call.shapes[x][-1]) for x in (q, v)]
        return tuple(Extent(s, 2, _by_rows(call, s)) for s in sizes), call.dtypes[q]
    boxes, dtype = [], None
    for term in rule.terms or ():
        contracted = _contracted(call, rule, term)
        if contracted:
            size = (*call.result, *contracted)
            boxes.append(Extent(size, 2, _by_rows(call, call.result)))
            dtype = call.dtypes[term.operands[0]]
    return tuple(boxes), dtype


def _contracted(call: Call, rule: Meaning, term: Term) -> list[Any]:
    """Sizes of the factors that two operands of the term share and the result does not have."""
    if len(term.operands) < 2:
        return []
    if isinstance(term.map, tuple) and term.map[0] == "einsum":
        *factors, result = term.map[1:]
    elif rule.dims is not None:
        factors = [rule.dims.operands[i] for i in term.operands]
        (result, *_) = rule.dims.results
    else:
        return []
    size_of: dict[Any, Any] = {}
    shared: dict[Any, None] = {}
    for i, labels in zip(term.operands, factors, strict=True):
        shared |= dict.fromkeys(x for x in labels if x in size_of)
        size_of |= zip(labels, call.shapes[i], strict=True)
    return [size_of[name] for name in shared if name is not None and name not in result]


def _shares_storage(node: fx.Node) -> bool:
    """Whether every result is a view of an operand: the kernel itself is asked, without data."""
    stand_ins: list[torch.Tensor] = []

    def stand_in(x: fx.Node) -> Any:
        value = access.value(x)
        if isinstance(value, torch.SymInt):
            return access.concrete(value, PROBE_SIZE)
        if not isinstance(value, torch.Tensor):
            return value
        every = value.shape, value.stride()
        layout = [[access.concrete(size, PROBE_SIZE) for size in sizes] for sizes in every]
        stand_ins.append(torch.empty_strided(*layout, dtype=value.dtype, device="meta"))
        return stand_ins[-1]

    args, kwargs = access.map_operands(node, stand_in)
    kwargs = {k: torch.device("meta") if k == "device" else v for k, v in kwargs.items()}
    assert isinstance(node.target, OpOverload), "only ops have kernels"
    try:
        result = node.target(*args, **kwargs)
    except Exception:  # a kernel that needs data has results of its own
        return False
    results = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
    storages = {x.untyped_storage()._cdata for x in stand_ins}
    return bool(results) and all(x.untyped_storage()._cdata in storages for x in results)
