"""What holds Python state that a trace reads, its values then and now, and how they differ."""

from __future__ import annotations

import dis
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from compiler.capture.pytrees import PLAIN

SEQUENCES = (list, tuple, set, frozenset, deque)
OPAQUE_PACKAGES = sys.stdlib_module_names | {"torch", __name__.partition(".")[0]}


class _AbsentType:
    """The value of what is not there."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _AbsentType()


class Kind(StrEnum):
    """What holds the values that were read."""

    ATTRIBUTES = "attributes"
    TENSORS = "tensors"
    ITEMS = "items"
    SEQUENCE = "sequence"
    HOOKS = "hooks"
    CLASS = "class"
    GLOBALS = "globals"
    CELLS = "cells"
    TYPES = "types"


@dataclass(frozen=True)
class TensorType:
    """What a graph depends on of a parameter: another of this type may take its place."""

    cls: type
    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    placements: Any

    @staticmethod
    def of(value: Any) -> Any:
        """Return the type of a tensor; other values, such as None, as they are."""
        if not isinstance(value, torch.Tensor):
            return value
        placements = (value.device_mesh, value.placements) if isinstance(value, DTensor) else None
        return TensorType(
            type(value), value.dtype, value.device, tuple(value.shape), value.stride(), placements
        )

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)} on {self.device}"


@dataclass
class Owner:
    """A dictionary, class, list or closure, and the values that were read of it.

    Attributes:
        target: the object.
        name: what to call it, such as ``layers.0``.
        kind: how it is read.
        values: key -> value; ``ABSENT`` where it was looked for and not there.
        whole: whether other keys count, too.
    """

    target: Any
    name: str
    kind: Kind
    values: dict[Any, Any] = field(default_factory=dict)
    whole: bool = False

    def now(self) -> Mapping[Any, Any]:
        """Return all that it holds."""
        match self.kind:
            case Kind.CLASS:
                return vars(cast(type, self.target))
            case Kind.SEQUENCE:
                return dict(enumerate(self.target))
            case Kind.CELLS:
                return dict(cells(self.target))
            case Kind.TYPES:
                return {name: type(module) for name, module in self.target.items()}
            case _:
                attributes: dict[Any, Any] = self.target
                return (
                    attributes if type(attributes) is dict else dict(dict.items(attributes))
                )  # as it is stored

    def label(self, key: Any) -> str:
        """Return how a reader of the model's code calls a value."""
        match self.kind:
            case Kind.ITEMS | Kind.SEQUENCE:
                return f"{self.name}[{key!r}]"
            case Kind.HOOKS:
                return f"a hook of {self.name}"
            case Kind.TYPES:
                return f"the class of {key or 'the model'}"
            case _:
                return f"{self.name}.{key}" if self.name else str(key)


@dataclass(frozen=True, eq=False)
class Change:
    """A value that is not what was read.

    Attributes:
        name: of the value.
        old: what was read.
        new: what is there now.
    """

    name: str
    old: Any
    new: Any

    @property
    def releases_state(self) -> bool:
        """Return whether the model lets go of a module or tensor, to be kept alive by nobody."""
        return isinstance(self.old, nn.Module | torch.Tensor | TensorType)

    def __str__(self) -> str:
        if self.old is ABSENT or self.new is ABSENT:
            return f"{self.name} was {'added' if self.old is ABSENT else 'removed'}"
        old, new = _short(self.old), _short(self.new)
        if old is None or new is None or old == new:
            return f"{self.name} was replaced"
        return f"{self.name} changed from {old} to {new}"


def same(old: Any, new: Any) -> bool:
    """Return whether a graph that read ``old`` is right for ``new``: itself or an equal constant.

    Floats are equal if they print alike: 0.0 and -0.0 differ, and NaN is itself.
    """
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if isinstance(old, PLAIN):
        return repr(old) == repr(new)
    return isinstance(old, types.MethodType | TensorType) and bool(old == new)


def summary(changes: Sequence[Change]) -> str:
    """Return at most three changes, and how many others there are."""
    rest = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return "; ".join(map(str, changes[:3])) + rest


def _short(value: Any) -> str | None:
    if isinstance(value, TensorType):
        return str(value)
    if isinstance(value, type):
        return value.__name__
    text = repr(value) if isinstance(value, (*PLAIN, list, tuple)) else ""
    return text if 0 < len(text) <= 40 else None


def is_opaque(function: types.FunctionType) -> bool:
    """Return whether a function is of torch or the standard library, whose code stays."""
    return (function.__module__ or "").partition(".")[0] in OPAQUE_PACKAGES


def cells(function: types.FunctionType) -> list[tuple[str, Any]]:
    """Return names and contents of a function's closure, without empty cells."""
    variables = list[tuple[str, Any]]()
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            variables.append((name, cell.cell_contents))
        except ValueError:
            continue
    return variables


def globals_of(
    code: types.CodeType, names: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Yield global names that code reads, also in the user's modules: namespace, name, value."""
    space: dict[str, Any] | None = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            space = names
        elif instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            space = None
        key = instruction.argval
        if space is None or key not in space or not key.isidentifier():  # pytest adds others
            space = None
            continue
        value, here = space[key], space
        space = None
        if not isinstance(value, types.ModuleType):
            yield here, key, value
        elif value.__name__.partition(".")[0] not in OPAQUE_PACKAGES:
            space = vars(value)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from globals_of(constant, names)
