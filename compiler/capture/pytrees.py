"""Nested arguments and results as leaves, and a structure that puts them together again.

Containers are those that ``torch.utils._pytree`` knows, and caches of transformers, whose
attributes are all children. Caches are not registered with pytree: its registry is the process's,
and transformers registers ``DynamicCache`` there in another form.

Identity is part of the structure. A tensor, list, dict or cache that is met again is an ``Alias``
of the first, so a model that writes to one of them writes to what its caller holds.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree

from compiler.capture.hf_caches import carrier, counters, is_cache_class
from compiler.errors import CaptureError

PLAIN = (
    bool, int, float, str, bytes, type(None), type, enum.Enum, torch.dtype, torch.device,
    torch.layout,
)  # fmt: skip
"""Leaves that a graph may hold as constants."""


@dataclass(frozen=True)
class Alias:
    """A leaf that is the same object as another.

    Attributes:
        of: "leaf" for a tensor, "object" for a container.
        index: its number in the order in which leaves or objects are met; the results of a model
            are numbered after its arguments.
    """

    of: Literal["leaf", "object"]
    index: int


@dataclass(frozen=True)
class Node:
    """A container.

    Attributes:
        kind: pytree's description with leaves in place of its children, or the class of a cache.
        size: number of children.
        names: of a cache, the attributes, in order.
        carried: of these, the ints that are sizes of tensors instead (``carrier``).
        mutable: whether it may be changed in place, so that its identity matters.
    """

    kind: pytree.TreeSpec | type
    size: int
    names: tuple[str, ...] = ()
    carried: frozenset[str] = frozenset()
    mutable: bool = False

    @property
    def is_cache(self) -> bool:
        """Return whether it is a cache, or a layer of one."""
        return isinstance(self.kind, type)

    def build(self, children: list[Any]) -> Any:
        """Build a container of these children."""
        if not isinstance(self.kind, type):
            return pytree.tree_unflatten(children, self.kind)
        cache: Any = object.__new__(self.kind)
        vars(cache).update(
            (name, x.shape[0] if name in self.carried else x)
            for name, x in zip(self.names, children, strict=True)
        )
        return cache

    def child_paths(self) -> list[tuple[str, ...]]:
        """Return what leads to each child: the name of an attribute, a key, a position."""
        if self.names:
            return [(name,) for name in self.names]
        assert not isinstance(self.kind, type), "a cache without attributes has no children"
        example = pytree.tree_unflatten(list(range(self.size)), self.kind)
        try:
            listed = pytree.tree_flatten_with_path(example)[0]
        except ValueError:  # its class was registered without keys
            return [(str(i),) for i in range(self.size)]
        return [tuple(map(_key, path)) for path, _ in listed]


@dataclass(frozen=True)
class Structure:
    """How leaves are put together.

    Attributes:
        nodes: containers in the order in which they are met, each before its children; None is a
            leaf.
        updated: numbers of the objects that take new contents, which follow in ``nodes``.
    """

    nodes: tuple[Node | None, ...]
    updated: tuple[int, ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.nodes, self.updated))


def whole(spec: pytree.TreeSpec) -> Structure:
    """Return the structure of a tree that pytree has flattened."""
    return Structure((Node(spec, spec.num_leaves), *(None,) * spec.num_leaves))


def paths(structure: Structure) -> list[tuple[str, ...]]:
    """Return per leaf what leads to it: names of attributes, keys of dicts, positions."""
    nodes = iter(structure.nodes)
    paths_of_leaves: list[tuple[str, ...]] = []

    def walk(path: tuple[str, ...]) -> None:
        if (node := next(nodes)) is None:
            paths_of_leaves.append(path)
            return
        for child in node.child_paths():
            walk((*path, *child))

    walk(())
    return paths_of_leaves


def opened(x: Any, *, carry: bool = False) -> tuple[Node | None, list[Any]]:
    """Return a container and its children; None if ``x`` is a leaf.

    Args:
        x: anything.
        carry: give counts of tokens in caches as sizes of tensors (``carrier``).
    """
    if isinstance(x, (torch.Tensor, *PLAIN)):
        return None, []
    cls: type = type(x)
    if is_cache_class(cls):
        attributes = dict(vars(x))
        counts = counters(cls) if carry else ()
        carried = frozenset(
            n for n in counts if type(attributes.get(n)) is int and attributes[n] >= 0
        )
        device = attributes.get("device")
        children = [carrier(x, device) if n in carried else x for n, x in attributes.items()]
        return Node(cls, len(attributes), tuple(attributes), carried, mutable=True), children
    children, kind = pytree.tree_flatten(x, is_leaf=lambda y: y is not x)
    if len(children) == 1 and children[0] is x:
        return None, []
    return Node(kind, len(children), mutable=not isinstance(x, tuple)), children


class Flattened:
    """Leaves and containers of what was added, in the order in which they are met.

    The attributes are those of ``Structure`` and of ``call_form.Arguments``.
    """

    def __init__(
        self, leaves: Sequence[Any] = (), objects: Sequence[Any] = (), *, carry: bool = False
    ) -> None:
        """Start behind ``leaves`` and ``objects`` met before, which count in all numbers.

        Objects, and tensors among the leaves, become aliases where they are met again.
        """
        self.leaves: list[Any] = []
        self.nodes: list[Node | None] = []
        self.objects: list[Any] = []
        self.cached: set[int] = set()
        self._carry, self._first = carry, (len(leaves), len(objects))
        self._depth = 0
        self._met: dict[int, Alias | None] = {}
        for i, x in enumerate(leaves):
            if isinstance(x, torch.Tensor):
                self._met[id(x)] = Alias("leaf", i)
        for i, x in enumerate(objects):
            self._met[id(x)] = Alias("object", i)

    def add(self, x: Any) -> None:
        """Flatten ``x``, a leaf or a container.

        Raises:
            CaptureError: a container contains itself.
        """
        if id(x) in self._met:
            if (alias := self._met[id(x)]) is None:
                raise CaptureError(
                    "a container contains itself",
                    found=f"{type(x).__module__}.{type(x).__qualname__}",
                    remedy="pass and return containers that can be flattened",
                )
            self._add_leaf(alias)
            return
        if isinstance(x, torch.Tensor):
            self._met[id(x)] = Alias("leaf", self._first[0] + len(self.leaves))
        node, children = opened(x, carry=self._carry)
        if node is None:
            self._add_leaf(x)
        elif node.mutable:
            alias = Alias("object", self._first[1] + len(self.objects))
            self.objects.append(x)
            self._met[id(x)] = None
            self.add_node(node, children)
            self._met[id(x)] = alias
        else:
            self.add_node(node, children)

    def add_node(self, node: Node, children: Sequence[Any]) -> None:
        """Add a container by its parts."""
        self.nodes.append(node)
        self._depth += node.is_cache
        for child in children:
            self.add(child)
        self._depth -= node.is_cache

    def _add_leaf(self, x: Any) -> None:
        if self._depth:
            self.cached.add(len(self.leaves))
        self.leaves.append(x)
        self.nodes.append(None)


def rebuilt(
    structure: Structure, leaves: Sequence[Any], objects: list[Any], before: Sequence[Any] = ()
) -> Any:
    """Rebuild what was flattened of new leaves; objects that are updated take new contents.

    Args:
        structure: of what was flattened.
        leaves: in its order; an Alias stands for the object that it names.
        objects: those that were met before; new ones are added.
        before: leaves that were met before.
    """
    nodes, values = iter(structure.nodes), iter(leaves)
    everything = (*before, *leaves)

    def build() -> Any:
        if (node := next(nodes)) is None:
            x = next(values)
            if not isinstance(x, Alias):
                return x
            return everything[x.index] if x.of == "leaf" else objects[x.index]
        place = len(objects)
        objects.extend([None] * node.mutable)
        container = node.build([build() for _ in range(node.size)])
        if node.mutable:
            objects[place] = container
        return container

    result = build()
    for index in structure.updated:
        take(objects[index], build())
    return result


UPDATED = (list, dict, OrderedDict, defaultdict, deque)


def can_take(x: Any) -> bool:
    """Return whether ``take`` can update an object."""
    return type(x) in UPDATED or (hasattr(x, "__dict__") and not isinstance(x, UPDATED))


def take(into: Any, contents: Any) -> None:
    """Give ``into`` the contents of an object of its class."""
    if isinstance(into, dict):
        into.clear()
        into.update(contents)
    elif isinstance(into, list | deque):
        into.clear()
        into.extend(contents)
    else:
        vars(into).clear()
        vars(into).update(vars(contents))


def unchanged(before: Any, after: Any) -> bool:
    """Return whether two children of a container are the same object, or equal constants."""
    if before is after:
        return True
    plain = type(before) is type(after) and isinstance(before, PLAIN)
    return plain and bool(before == after)


def _key(entry: Any) -> str:
    for attribute in ("idx", "key", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
