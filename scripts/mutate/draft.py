"""A copy of a graph to break: finds places, edits them, and types the result again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensor

from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Collective, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.rules.meaning import shape_key, size_key

c10d = torch.ops._c10d_functional
T = TypeVar("T")


class NothingToBreakError(Exception):
    """The graph has no place for a mutation, or what it makes of the place is not a graph."""


@dataclass
class Draft:
    """A graph that may be changed.

    Attributes:
        spmd: the copy; its nodes are its own.
        rng: decides where to break it.
        touched: nodes whose operands or arguments were changed.
    """

    spmd: SpmdGraph
    rng: random.Random
    touched: set[fx.Node] = field(default_factory=set)

    @staticmethod
    def of(graph: SpmdGraph, rng: random.Random) -> Draft:
        """A copy of ``graph``; meanings are not carried over."""
        copy = graph.own_copy()
        return Draft(SpmdGraph(graph.root, copy.graph, graph.mesh, graph.inputs), rng)

    @property
    def nodes(self) -> list[fx.Node]:
        """All nodes in order."""
        return list(self.spmd.graph.nodes)

    def pick(self, options: Iterable[T]) -> T:
        """One of several places.

        Raises:
            NothingToBreakError: there is none.
        """
        places = list(options)
        if not places:
            raise NothingToBreakError
        return self.rng.choice(places)

    def calls(self, *targets: object) -> list[fx.Node]:
        """Calls of these ops; of every op that is not a collective if none is named."""
        return [
            n for n in self.nodes
            if n.op == "call_function" and access.is_operand(n)
            and (n.target in targets if targets else n.target not in OPS and n.target is not WAIT)
        ]  # fmt: skip

    def values(self) -> list[fx.Node]:
        """Floating-point tensors that something reads: inputs, results of ops, of collectives."""
        return [
            n for n in self.nodes
            if n.users and n.target not in OPS and is_float(n)
        ]  # fmt: skip

    def waits(self, *kinds: Kind) -> list[tuple[fx.Node, Collective]]:
        """Results of collectives of these kinds."""
        pairs = ((n, collective(n)) for n in self.nodes if n.target is WAIT)
        return [(n, c) for n, c in pairs if c is not None and c.kind in kinds]

    def group_size(self, name: str) -> int:
        """Ranks in each group of this name."""
        return self.spmd.mesh.group(name).axis_size

    def position(self, name: str) -> list[int]:
        """Every rank's place in its group."""
        groups = self.spmd.mesh.group(name)
        return [groups.group_of[r].index(r) for r in range(self.spmd.mesh.size)]

    def groups(self, size: int | None = None) -> list[str]:
        """Names of groups of several ranks, of one size if it is given."""
        sizes = {name: self.group_size(name) for name in self.spmd.mesh.groups}
        return [name for name, n in sizes.items() if n > 1 and size in (None, n)]

    def after(self, node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call inserted after ``node`` (after all inputs, if it is one of them)."""
        while node.op == "placeholder" and node.next.op == "placeholder":
            node = node.next
        with self.spmd.graph.inserting_after(node):
            written = self.spmd.graph.call_function(target, args, kwargs)
        self.touched.add(written)
        return written

    def communicate(self, node: fx.Node, x: fx.Node, target: Any, *args: Any) -> fx.Node:
        """A collective of ``x`` inserted after ``node``, waited for."""
        started = self.after(node, target, x, *args)
        return self.after(started, WAIT, started)

    def all_reduce(self, node: fx.Node, x: fx.Node, op: str, group: str) -> fx.Node:
        """An all_reduce of ``x`` inserted after ``node``."""
        return self.communicate(node, x, c10d.all_reduce.default, op, group)

    def redirect(
        self, node: fx.Node, other: fx.Node, *, keep: Sequence[fx.Node] = (), only: Any = None
    ) -> None:
        """Readers of ``node`` read ``other`` instead: all but ``keep``, or ``only`` one."""
        for user in list(node.users):
            if user not in keep and user is not other and only in (None, user):
                user.replace_input_with(node, other)
                self.touched.add(user)

    def wrap(self, node: fx.Node, make: Callable[[fx.Node], fx.Node]) -> None:
        """Readers of ``node`` read what ``make`` inserts after it."""
        before = set(self.nodes)
        wrapped = make(node)
        self.redirect(node, wrapped, keep=[n for n in self.nodes if n not in before])

    def set(self, node: fx.Node, name: str, value: Any) -> None:
        """Change the argument of a call that its schema calls ``name``."""
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        at = names.index(name)
        if at < len(node.args):
            node.args = (*node.args[:at], value, *node.args[at + 1 :])
        else:
            node.kwargs = {**node.kwargs, name: value}
        self.touched.add(node)

    def alike(self, node: fx.Node, before: fx.Node) -> list[fx.Node]:
        """Other values of the type of ``node`` that are computed before ``before``."""
        nodes = []
        for n in self.nodes:
            if n is before:
                break
            if n is not node and n.target not in OPS and same_type(n, node):
                nodes.append(n)
        return nodes

    def finish(self) -> SpmdGraph:
        """The broken graph, every value typed.

        Raises:
            NothingToBreakError: an op cannot run on what it is given now.
        """
        self.spmd.graph.lint()
        value = next(
            (h for n in self.nodes if isinstance(h := n.meta.get("val"), FakeTensor)), None
        )
        changed: set[fx.Node] = set()
        with _fake(value):
            for node in self.nodes:
                if node.op != "call_function":
                    continue
                if node in self.touched or any(x in changed for x in node.all_input_nodes):
                    before = node.meta.get("val")
                    node.meta["val"] = self._typed(node)
                    if before is None or type_key(before) != type_key(node.meta["val"]):
                        changed.add(node)
        return self.spmd

    def _typed(self, node: fx.Node) -> Any:
        if node.target is WAIT:
            return node.args[0].meta["val"]  # type: ignore[union-attr]
        if node.target in OPS:
            return self._communicated(node)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        try:
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:
            raise NothingToBreakError(str(error)) from error

    def _communicated(self, node: fx.Node) -> torch.Tensor:
        communication = collective(node)
        assert communication is not None, f"%{node.name} is not a collective"
        value = access.tensor(communication.operand)
        count = self.group_size(communication.group)
        if communication.kind in (Kind.ALL_GATHER, Kind.REDUCE_SCATTER) and not value.dim():
            raise NothingToBreakError
        match communication.kind:
            case Kind.ALL_GATHER:
                return value.new_empty((value.shape[0] * count, *value.shape[1:]))
            case Kind.REDUCE_SCATTER:
                if not isinstance(value.shape[0], int) or value.shape[0] % count:
                    raise NothingToBreakError
                return value.new_empty((value.shape[0] // count, *value.shape[1:]))
            case _:
                return value


@contextmanager
def _fake(value: FakeTensor | None) -> Iterator[None]:
    """The context in which ops give types without computing."""
    if value is None:
        yield
        return
    # The Python dispatcher keeps sizes symbolic in ops that are composed of others.
    mode = value.fake_mode
    env = mode.shape_env
    with mode, enable_python_dispatcher():
        if env is None:
            yield
        else:
            with env.suppress_guards():
                yield


def type_key(value: Any) -> Any:
    """What makes two values interchangeable as operands."""
    if isinstance(value, torch.Tensor):
        return value.dtype, shape_key(value)
    if isinstance(value, list | tuple):
        return tuple(map(type_key, value))
    return type(value), size_key(value)


def same_type(left: fx.Node, right: fx.Node) -> bool:
    """Whether both are tensors of one element type and shape."""
    if not (access.is_tensor(left) and access.is_tensor(right)):
        return False
    return bool(type_key(left.meta["val"]) == type_key(right.meta["val"]))


def is_float(node: fx.Node) -> bool:
    """Whether the node computes a floating-point tensor."""
    return access.is_tensor(node) and access.dtype(node).is_floating_point
