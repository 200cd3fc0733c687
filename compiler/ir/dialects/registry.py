"""What ops of others mean: one table, name of the op -> entry. See ``docs/dialects.md``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from compiler.errors import CommPlanError
from compiler.ir.collectives import Kind
from compiler.ir.placement import REDUCTIONS
from compiler.ir.rules import forget_meanings, opaque
from compiler.ir.rules.opaque import OpaqueOp

ENTRY_POINTS = "commplan.dialects"
"""Group of entry points that name mappings for ``register_ops``."""


@dataclass(frozen=True)
class CollectiveOp:
    """An op that is one collective, read as ours and written back.

    Attributes:
        kind: "all_reduce", "reduce_scatter", "all_gather", "all_to_all" or "broadcast".
        tensor: the argument that is communicated; empty: the first tensor that the op does not
            write to, or its only one. Where the op writes to tensors, these are the result.
        group: the argument that names the group. Empty: there is none; the group is called as
            the op (``ns::name``), or is the only axis of the mesh.
        dim: the argument that says along which dimension rows are scattered or gathered, or the
            dimension.
        ranks: the argument that says how many ranks there are; empty: the op has none.
        op: the reduction.
        reduce_op: the argument that says which reduction, empty where the op has none.
    """

    kind: str
    tensor: str = ""
    group: str = "group_name"
    dim: str | int = 0
    ranks: str = ""
    op: str = "sum"
    reduce_op: str = ""

    def tensor_of(self, op: OpOverload) -> str:
        """Return the argument of ``op`` that is communicated."""
        tensors = [a for a in op._schema.arguments if isinstance(a.type, torch.TensorType)]
        read = [a.name for a in tensors if a.alias_info is None or not a.alias_info.is_write]
        return self.tensor or next(iter((*read, *(a.name for a in tensors))), "")

    def __post_init__(self) -> None:
        """Check kind and reduction.

        Raises:
            CommPlanError: there is no such kind, or no such reduction.
        """
        for what, value, listed in (("kind", self.kind, tuple(Kind)), ("op", self.op, REDUCTIONS)):
            if value not in listed:
                raise CommPlanError(
                    f"{what}= of a CollectiveOp must be one of {', '.join(listed)}",
                    found=repr(value),
                    remedy="declare other ops as ComposedOp",
                )


@dataclass(frozen=True)
class ComposedOp:
    """An op that does what a function does, which is written in ATen ops and collectives.

    Attributes:
        function: takes the op's arguments by name, returns what the op returns, and writes to the
            arguments that the op writes to; or its path, as ``"package.module:name"``. Collectives
            in it are ``torch.ops._c10d_functional`` ops and their ``wait_tensor``.
    """

    function: Callable[..., Any] | str

    def loaded(self) -> Callable[..., Any]:
        """Return the function.

        Raises:
            CommPlanError: there is none of that path.
        """
        if callable(self.function):
            return self.function
        module, _, name = self.function.partition(":")
        try:
            function = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise CommPlanError(
                f"the function {self.function!r} of a ComposedOp cannot be imported",
                found=str(error),
                remedy='name it as "package.module:function"',
            ) from error
        assert callable(function), f"{self.function} is not a function"
        return function  # type: ignore[no-any-return]


Entry = CollectiveOp | ComposedOp | OpaqueOp
REGISTERED: dict[str, Entry] = {}
"""Name of an op, as ``ns::name`` or ``ns::name.overload`` -> what it means."""
_NAME = re.compile(r"\w+::\w+(\.\w+)?")


def register_ops(ops: Mapping[str, Entry]) -> None:
    """Declare what ops mean, by their names: ``ns::name``, with ``.overload`` but for "default".

    The ops need not be installed. Declared again, an op is what it was declared last.

    Raises:
        CommPlanError: not a name of an op, or not a CollectiveOp, ComposedOp or OpaqueOp.
    """
    for name, entry in ops.items():
        if not _NAME.fullmatch(name) or not isinstance(entry, Entry):
            raise CommPlanError(
                "an op must be declared by name, as a CollectiveOp, ComposedOp or OpaqueOp",
                found=f"{name!r}: {entry!r}",
                remedy='for example {"vllm::all_reduce": CollectiveOp("all_reduce")}',
            )
    for name, entry in ops.items():
        REGISTERED[name] = entry
        opaque.DECLARED.pop(name, None)
        if isinstance(entry, OpaqueOp):
            opaque.DECLARED[name] = entry
    forget_meanings()


@cache
def load_installed() -> None:
    """Register what commplan knows, and then what installed packages declare, once.

    Raises:
        CommPlanError: an entry point that cannot be loaded, or is not a mapping of ops.
    """
    own = {**REGISTERED}
    register_ops(import_module("compiler.ir.dialects.known").OPS)
    for point in entry_points(group=ENTRY_POINTS):
        try:
            register_ops(dict(point.load()))
        except Exception as error:
            raise CommPlanError(
                f"the entry point {point.name!r} of group {ENTRY_POINTS!r} cannot be used",
                where=point.value,
                found=str(error).partition("\n")[0],
                remedy="let it name a mapping for register_ops, or uninstall its package",
            ) from error
    register_ops(own)


def entry_of(node: fx.Node) -> Entry | None:
    """Return what is declared of the op that ``node`` calls, or None."""
    op = called(node)
    return None if op is None else REGISTERED.get(opaque.name_of(op))


def called(node: fx.Node) -> OpOverload | None:
    """Return the op that ``node`` calls, also through ``auto_functionalized``; None for others."""
    if node.op != "call_function":
        return None
    return opaque.op_called(node.target, next(iter(node.args), None))
