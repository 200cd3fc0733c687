"""Call arguments in one canonical order, flattened: the same for keyword and positional calls.

Every argument that has a name is passed by that name, in the order of the signature, and left out
where it is the default; extra keywords follow, sorted. A GraphModule is called just as its caller
does: the module of an exported program insists on the form it was exported with.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from compiler.capture.pytrees import PLAIN, Alias, Flattened, Structure, paths, whole
from compiler.errors import CaptureError

Kind = inspect.Parameter


@dataclass(frozen=True)
class Arguments:
    """Flattened call arguments.

    Attributes:
        leaves: tensors and constants; ``Alias`` for what was met before; counts of tokens in
            caches are the first sizes of tensors without elements.
        spec: the structure of ``(args, kwargs)``.
        objects: the caller's containers that a model may change in place.
        cached: positions of leaves in caches.
    """

    leaves: tuple[Any, ...]
    spec: Structure
    objects: tuple[Any, ...] = ()
    cached: frozenset[int] = frozenset()

    @property
    def lacks_tokens(self) -> bool:
        """Return whether a tensor has no elements; in a cache, that says nothing."""
        leaves = enumerate(self.leaves)
        return any(
            isinstance(x, torch.Tensor) and x.numel() == 0 and i not in self.cached
            for i, x in leaves
        )


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
        """Return the call form of ``model``."""
        return CallForm(inspect.signature(model.forward), isinstance(model, fx.GraphModule))

    def canonical(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the call in canonical order.

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
        for name, value in bound.items():
            kind, default = kinds[name], self.signature.parameters[name].default
            if kind is Kind.VAR_POSITIONAL:
                positional.extend(value)
            elif kind is Kind.VAR_KEYWORD:
                extra = value
            elif kind is Kind.POSITIONAL_ONLY or (
                by_position and kind is Kind.POSITIONAL_OR_KEYWORD
            ):
                positional.append(value)
            elif value is not default:
                named[name] = value
        return tuple(positional), named | {name: extra[name] for name in sorted(extra)}

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Return the leaves of the call's canonical arguments.

        A GraphModule has an input for each leaf that pytree finds, whatever objects they are.

        Raises:
            CaptureError: the arguments do not fit the signature, or one contains itself.
        """
        canonical = self.canonical(args, kwargs)
        if self.as_given:
            leaves, spec = pytree.tree_flatten(canonical)
            return Arguments(tuple(leaves), whole(spec))
        flat = Flattened(carry=True)
        flat.add(canonical)
        return Arguments(
            tuple(flat.leaves),
            Structure(tuple(flat.nodes)),
            tuple(flat.objects),
            frozenset(flat.cached),
        )

    def names(self, arguments: Arguments) -> tuple[str, ...]:
        """Return per leaf the argument it belongs to, such as ``ids`` or ``cache_0_key``."""
        listed = [
            n for n, p in self.signature.parameters.items() if p.kind is not Kind.KEYWORD_ONLY
        ]
        return tuple(_name(path, listed) for path in paths(arguments.spec))


def check_leaf(what: str, leaf: Any) -> None:
    """Check that ``leaf`` is a tensor, a size or a plain constant."""
    symbolic = torch.SymInt, torch.SymFloat, torch.SymBool
    if not isinstance(leaf, (torch.Tensor, Alias, *symbolic, *PLAIN)):
        raise CaptureError(
            f"{what} must be a tensor or a plain constant",
            found=f"{type(leaf).__module__}.{type(leaf).__qualname__}",
            remedy="use tensors, numbers, strings and containers of them; for a class of your own "
            "torch.export.register_dataclass or torch.utils._pytree.register_pytree_node",
        )


def _name(path: tuple[str, ...], listed: list[str]) -> str:
    """Return a name for the leaf at ``path`` in ``(args, kwargs)``."""
    tree, first, *inner = path
    if tree == "0":
        place = int(first)
        first = listed[place] if place < len(listed) else f"arg_{place}"
    return "_".join("".join(c if c.isalnum() else "_" for c in part) for part in (first, *inner))
