"""Calls like one that was seen before, recognized in one walk over their arguments.

Flattening a call in canonical order takes some milliseconds for a cache of ninety tensors. The walk
gives the tensors in the order in which they are met, and what tells calls apart: the containers,
shapes, types, devices and constants. Where each tensor stands in the canonical order is a function
of that, computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compiler.capture.call_form import Arguments, CallForm
from compiler.capture.hf_caches import carrier, counters, is_cache_class
from compiler.capture.pytrees import PLAIN

COMMON = frozenset((bool, int, float, str, type(None), torch.dtype, torch.device))
"""Classes of constants that need no further look."""


class _OtherError(Exception):
    """A container or leaf that the walk does not know."""


@dataclass(frozen=True)
class WalkedCall:
    """One call.

    Attributes:
        key: equal for calls that differ in the sizes and values of tensors alone.
        shapes: of the tensors.
        tensors: in the order in which they are met, each once.
        objects: lists, dicts and caches, likewise.
    """

    key: Hashable
    shapes: tuple[torch.Size, ...]
    tensors: list[torch.Tensor]
    objects: list[Any]


LeafOrder = Callable[[WalkedCall], Arguments]


class Recognizer:
    """Flattens calls; those like one before in one walk."""

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._arranged: dict[Hashable, LeafOrder] = {}

    def __call__(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Arguments, Hashable | None]:
        """A call's arguments, and what is equal for calls that differ in values alone.

        Returns:
            The arguments, and None for the second where a container has to be flattened each time.

        Raises:
            CaptureError: the arguments do not fit the model.
        """
        if (call := walked(args, kwargs)) is None:
            return self._form.flatten(args, kwargs), None
        if (arranged := self._arranged.get(call.key)) is None:
            arranged = canonical_order(self._form, args, kwargs, call)
            self._arranged[call.key] = arranged
        return arranged(call), (call.key, call.shapes)


class _Walk:
    """The state of one walk; see ``WalkedCall``."""

    def __init__(self) -> None:
        self.key: list[Any] = []
        self.tensors: list[torch.Tensor] = []
        self.objects: list[Any] = []
        self.met: dict[int, int] = {}

    def visit(self, x: Any) -> None:
        kind: type = type(x)
        if isinstance(x, torch.Tensor):
            self.visit_tensor(x)
        elif kind is tuple:
            self.visit_items(tuple, x)
        elif kind is list or kind is dict or is_cache_class(kind):
            self.visit_object(kind, x)
        elif isinstance(x, PLAIN):
            self.key.extend((kind, x))
        else:
            raise _OtherError

    def visit_items(self, kind: type, items: Sequence[Any]) -> None:
        self.key.extend((kind, len(items)))
        for item in items:
            self.visit(item)

    def visit_tensor(self, x: torch.Tensor) -> None:
        count = len(self.tensors)
        if (at := self.met.setdefault(id(x), count)) == count:
            self.tensors.append(x)
            self.key.extend((x.dtype, x.device))
        else:
            self.key.extend(("tensor", at))

    def visit_object(self, kind: type, x: Any) -> None:
        count = len(self.objects)
        if (at := self.met.setdefault(id(x), count)) != count:
            self.key.extend(("object", at))
            return
        self.objects.append(x)
        if kind is list:
            self.visit_items(list, x)
        elif kind is dict:
            self.key.append(tuple(x))
            self.visit_items(dict, tuple(x.values()))
        else:
            self.visit_cache(kind, vars(x))

    def visit_cache(self, kind: type, attributes: dict[str, Any]) -> None:
        kinds = tuple(map(type, attributes.values()))
        self.key.extend((kind, tuple(attributes), kinds))
        counts, device = counters(kind), attributes.get("device")
        for name, item, of in zip(attributes, attributes.values(), kinds, strict=True):
            if of is int and name in counts and item >= 0:
                self.visit_tensor(carrier(item, device))
            elif of in COMMON:
                self.key.append(item)
            else:
                self.visit(item)


def walked(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> WalkedCall | None:
    """The call, or None if it holds other containers than tuples, lists, dicts and caches."""
    walk = _Walk()
    walk.key.extend((len(args), tuple(kwargs)))
    try:
        for x in (*args, *kwargs.values()):
            walk.visit(x)
    except _OtherError:
        return None
    shapes = tuple([x.shape for x in walk.tensors])
    return WalkedCall(tuple(walk.key), shapes, walk.tensors, walk.objects)


def canonical_order(
    form: CallForm, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: WalkedCall
) -> LeafOrder:
    """What puts a walked call in the canonical order of calls with its key.

    Args:
        form: of the model.
        args: of a call.
        kwargs: of the same call.
        call: the same, walked.
    """
    flat = form.flatten(args, kwargs)
    place = {id(x): i for i, x in enumerate(call.tensors)}
    at = [place.get(id(leaf), -1) for leaf in flat.leaves]
    constants = [None if i >= 0 else leaf for i, leaf in zip(at, flat.leaves, strict=True)]
    place = {id(x): i for i, x in enumerate(call.objects)}
    numbers = [place.get(id(x)) for x in flat.objects]  # None: the dict of keywords itself

    def arranged(call: WalkedCall) -> Arguments:
        tensors, objects = call.tensors, call.objects
        return Arguments(
            tuple(tensors[i] if i >= 0 else c for i, c in zip(at, constants, strict=True)),
            flat.spec,
            tuple(None if i is None else objects[i] for i in numbers),
            flat.cached,
        )

    return arranged
