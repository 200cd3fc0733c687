"""What ops do by their schemas, and what they give for operands of certain types: the memo.

A model repeats its layers, so nearly every op has been met with operands of the same type. Only the
first of a kind is run on fake tensors, which also collects the guards on sizes that it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from compiler.capture.functionalize import Metadata, NotRecordedError, Value, aten
from compiler.ir.collectives import WAIT

COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
COPIES = {aten.lift_fresh.default: aten.lift_fresh_copy.default}
"""View op -> the copy recorded for it: a constant of the model's code is new at each call."""


@dataclass(frozen=True)
class Op:
    """What an op does, by its schema.

    Attributes:
        target: what is recorded: the op, or what computes what it writes.
        kind: "pure", "view" of its first operand, "write" to its first operand, "number" if it
            has nothing to do with tensors, or why it is not recorded.
        composite: whether C++ has it as a composition of other ops.
        kept: whether a composition is recorded as one op, as torch.export does.
    """

    target: Any
    kind: str
    composite: bool
    kept: bool

    @staticmethod
    def of(func: OpOverload) -> Op:
        """Describe ``func``."""
        name: str = func.name()  # type: ignore[no-untyped-call]
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(name, COMPOSITE)
        aliases: list[Any] = [argument.alias_info for argument in func._schema.arguments]
        shared = [i for i, alias in enumerate(aliases) if alias is not None]
        written = [i for i in shared if aliases[i].is_write]
        unsure = getattr(torch.Tag, "maybe_aliasing_or_mutating", None) in func.tags
        kept = not shared and not unsure
        target: Any = COPIES.get(func, func)
        if func._schema.returns and not _mentions_tensors(func):
            kind = "number"
        elif func is WAIT:
            kind = "write"  # its result is the operand, complete from now on
        elif target is not func or not shared:
            kind = "view" if func is aten._unsafe_view.default else "pure"
        elif written:
            functional = _functional(func, written)
            kind, target = ("write", functional) if functional else (f"{func}, which writes", None)
        elif shared == [0] and "as_strided" not in name:
            kind = "view"
        else:
            kind = f"{func}, whose results share memory"
        return Op(target, kind, composite, kept)


def _mentions_tensors(func: OpOverload) -> bool:
    return any("Tensor" in str(x.type) for x in (*func._schema.arguments, *func._schema.returns))


def _functional(func: OpOverload, written: list[int]) -> Any:
    """Return the op that computes what ``func`` writes to its first operand alone, or None."""
    namespace, name = func._schema.name.split("::")
    if written != [0] or not name.endswith("_") or torch.Tag.inplace_view in func.tags:
        return None
    if namespace == "c10d" or name in ("set_", "resize_", "resize_as_"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    return getattr(packet, func._overloadname, None)


@dataclass(frozen=True)
class Result:
    """What an op gives for operands of certain types.

    Attributes:
        types: type of each result, None where it gives None.
        container: list or tuple of several results; None for one tensor.
        val: ``meta["val"]`` of the node.
        operand: index of the argument that is the result itself.
        view: whether results share the first operand's memory.
        shares: whether results share memory without saying so.
    """

    types: tuple[Metadata | None, ...]
    container: type | None = None
    val: Any = None
    operand: int | None = None
    view: bool = False
    shares: bool = False


class Memo:
    """What is known of ops and types; traces of several ranks in one process share it.

    Attributes:
        mode: the fake mode of all stand-ins.
        env: its symbols of sizes and their guards.
        types: key -> type.
        results: op, operands and thread state -> what the op gives.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        """Know nothing yet; ``mode`` has the symbols of sizes."""
        self.mode = mode
        self.env: Any = mode.shape_env
        self.types: dict[tuple[Any, ...], Metadata] = {}
        self.results: dict[tuple[Any, ...], Result] = {}
        self._ops: dict[OpOverload, Op] = {}

    def op(self, func: OpOverload) -> Op:
        """Return what ``func`` does."""
        if (op := self._ops.get(func)) is None:
            op = self._ops[func] = Op.of(func)
        return op

    def symint(self, expr: sympy.Basic) -> Any:
        """Return a size."""
        if expr.is_Integer:
            return int(expr)
        return self.env.create_symintnode(expr, hint=None)

    def type_of(self, tensor: torch.Tensor) -> Metadata:
        """Return the type of a tensor, which may have data."""
        shape, strides = _exprs(tensor.shape), _exprs(tensor.stride())
        is_param = isinstance(tensor, nn.Parameter)
        key = shape, strides, tensor.dtype, tensor.device, tensor.requires_grad, is_param
        cached = self.types.get(key)
        return self._new_type(tensor, key) if cached is None else cached

    def _new_type(self, tensor: torch.Tensor, key: tuple[Any, ...]) -> Metadata:
        env = self.env
        sizes = [x for x in (*key[0], *key[1]) if not isinstance(x, int)]
        if any(env.is_unbacked_symint(s) for size in sizes for s in size.free_symbols):
            raise NotRecordedError("a size that is read out of data")
        if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
            raise NotRecordedError(
                f"a tensor of layout {tensor.layout}, conjugate or negated by a flag"
            )
        elem = self._elem(tensor.shape, tensor.stride(), key)
        new = Metadata(key, len(self.types), elem, self._stand_in(elem, key))
        self.types[key] = new
        return new

    def _elem(self, shape: Any, strides: Any, key: tuple[Any, ...]) -> torch.Tensor:
        with unset_fake_temporarily(), torch.inference_mode(False):
            return torch.empty_strided(
                tuple(shape), tuple(strides), dtype=key[2], device="meta", requires_grad=key[4]
            )

    def _stand_in(self, elem: torch.Tensor, key: tuple[Any, ...]) -> Any:
        with unset_fake_temporarily():
            stand_in: Any = FakeTensor(self.mode, elem, key[3])
        if key[5]:
            stand_in._is_param = True
        return stand_in

    def tensor(self, value: Value) -> Any:
        """Return a stand-in for ``value``, which the model computes with."""
        stand_in = self._stand_in(value.metadata.elem, value.metadata.key)
        stand_in._value = value
        return stand_in

    def settled(self) -> dict[int, Any]:
        """Give types their final sizes; id of a value of ``meta["val"]`` -> the final one."""
        final = self.env.replace
        new: dict[int, Any] = {}
        if not self.env.replacements:
            return new
        for key, old in list(self.types.items()):
            sizes = tuple(tuple(final(sympy.sympify(x)) for x in xs) for xs in key[:2])
            if sizes != key[:2]:
                shape, strides = ([self.symint(x) for x in xs] for xs in sizes)
                val = self._stand_in(self._elem(shape, strides, key), key)
                new[id(old.val)] = val
                self.types[key] = Metadata(key, old.number, old.elem, val)
        return new


def _exprs(sizes: Any) -> tuple[Any, ...]:
    return tuple(s.node.expr if type(s) is torch.SymInt else s for s in sizes)
