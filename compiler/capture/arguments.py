"""Call arguments in one canonical order, flattened: the same for keyword and positional calls.

Every argument that has a name is passed by that name, in the order of the signature, and left out
where it is the default; extra keywords follow, sorted. A GraphModule is called just as its caller
does: the module of an exported program insists on the form it was exported with.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from compiler.errors import CaptureError

Kind = inspect.Parameter
PLAIN = (
    bool, int, float, str, bytes, type(None), enum.Enum, torch.dtype, torch.device, torch.layout,
)  # fmt: skip
"""Leaves that a graph may hold as constants."""


@dataclass(frozen=True)
class Arguments:
    """Flattened call arguments.

    Attributes:
        leaves: tensors and constants.
        spec: the tree of ``(args, kwargs)`` they are the leaves of.
    """

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec


@dataclass(frozen=True)
class CallForm:
    """How a model is called.

    Attributes:
        signature: of its forward, without self.
        as_given: whether calls are left as they are.
    """

    signature: inspect.Signature
    as_given: bool

    @staticmethod
    def of(model: nn.Module) -> CallForm:
        """The call form of ``model``."""
        return CallForm(inspect.signature(model.forward), isinstance(model, fx.GraphModule))

    def canonical(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call in canonical order.

        Raises:
            CaptureError: the arguments do not fit the signature.
        """
        if self.as_given:
            return args, dict(kwargs)
        try:
            bound = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise CaptureError(
                "the arguments do not fit the model's forward",
                where=f"forward{self.signature}",
                found=str(error),
                remedy="call it as the model itself is called",
            ) from None
        kinds = {name: p.kind for name, p in self.signature.parameters.items()}
        by_position = any(kinds[n] is Kind.VAR_POSITIONAL for n in bound)
        positional: list[Any] = []
        named: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for name, held in bound.items():
            kind, default = kinds[name], self.signature.parameters[name].default
            if kind is Kind.VAR_POSITIONAL:
                positional.extend(held)
            elif kind is Kind.VAR_KEYWORD:
                extra = held
            elif kind is Kind.POSITIONAL_ONLY or (
                by_position and kind is Kind.POSITIONAL_OR_KEYWORD
            ):
                positional.append(held)
            elif held is not default:
                named[name] = held
        return tuple(positional), named | {name: extra[name] for name in sorted(extra)}

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """The call's canonical arguments as leaves.

        Raises:
            CaptureError: the arguments do not fit the signature.
        """
        leaves, spec = pytree.tree_flatten(self.canonical(args, kwargs))
        return Arguments(tuple(leaves), spec)

    def names(self, given: Arguments) -> tuple[str, ...]:
        """Per leaf, the argument it belongs to, such as ``ids`` or ``cache_0_key``."""
        tree = pytree.tree_unflatten(list(range(len(given.leaves))), given.spec)
        listed = [
            n for n, p in self.signature.parameters.items() if p.kind is not Kind.KEYWORD_ONLY
        ]
        return tuple(_name(path, listed) for path, _ in pytree.tree_flatten_with_path(tree)[0])


def check_leaf(what: str, leaf: Any) -> None:
    """Raise CaptureError unless ``leaf`` is a tensor, a size or a plain constant."""
    if not isinstance(leaf, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, *PLAIN)):
        raise CaptureError(
            f"{what} is neither a tensor nor a plain constant",
            found=f"{type(leaf).__module__}.{type(leaf).__qualname__}",
            remedy="use tensors, numbers, strings and containers of them; for a class of your own "
            "torch.export.register_dataclass or torch.utils._pytree.register_pytree_node",
        )


def _name(path: tuple[Any, ...], listed: list[str]) -> str:
    """A name for the leaf at ``path`` in ``(args, kwargs)``."""
    tree, first, *inner = (_key(entry) for entry in path)
    if tree == "0":
        place = int(first)
        first = listed[place] if place < len(listed) else f"arg_{place}"
    return "_".join("".join(c if c.isalnum() else "_" for c in part) for part in (first, *inner))


def _key(entry: Any) -> str:
    for field in ("idx", "key", "name"):
        if hasattr(entry, field):
            return str(getattr(entry, field))
    return str(entry)
