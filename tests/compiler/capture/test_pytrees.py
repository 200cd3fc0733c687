"""Arguments and results as leaves, and put together again: containers, identity, names."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree

from compiler.capture.pytrees import Alias, Flattened, Structure, can_take, paths, rebuilt, take
from compiler.errors import CaptureError

X, Y = torch.ones(2), torch.zeros(3)
Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class State:
    key: torch.Tensor
    count: int = 0


@dataclass
class Unnamed:
    inner: Any


pytree.register_dataclass(State)
pytree.register_pytree_node(Unnamed, lambda x: ([x.inner], None), lambda x, _: Unnamed(*x))


def flat(x: Any) -> tuple[list[Any], Structure]:
    flattened = Flattened()
    flattened.add(x)
    return flattened.leaves, Structure(tuple(flattened.nodes))


@pytest.mark.parametrize(
    "tree",
    [
        X,
        3,
        None,
        (),
        [X, {"a": (Y, 1.5), "b": None}],
        OrderedDict(b=X, a=[Y]),
        Pair(X, (Y, "text")),
        State(X, 2),
        {"deep": [State(X), Unnamed([Y])]},
    ],
)
def test_trees_as_pytree_knows_them(tree: Any) -> None:
    leaves, structure = flat(tree)
    want, _ = pytree.tree_flatten(tree)
    assert len(leaves) == len(want)
    assert all(a is b for a, b in zip(leaves, want, strict=True))
    again = rebuilt(structure, leaves, [])
    assert pytree.tree_structure(again) == pytree.tree_structure(tree)
    assert (structure, hash(structure)) == (flat(again)[1], hash(flat(again)[1]))


def test_what_is_met_again_is_an_alias() -> None:
    shared = [X]
    leaves, structure = flat((X, Y, X, shared, {"a": shared}, (), ()))
    assert leaves == [X, Y, Alias("leaf", 0), Alias("leaf", 0), Alias("object", 0)]
    a, _, again, one, other, *_ = rebuilt(structure, [Y, X, *leaves[2:]], objects := [])
    assert a is again is one[0] is Y
    assert one is other["a"] is objects[0]
    assert flat((X, X))[0] != flat((X, Y))[0]


def test_a_container_that_contains_itself() -> None:
    around: list[Any] = [X]
    around.append({"again": around})
    with pytest.raises(CaptureError) as caught:
        flat(around)
    assert str(caught.value) == (
        "a container contains itself\n  found: builtins.list\n"
        "  remedy: pass and return containers that can be flattened"
    )


def test_paths_name_leaves() -> None:
    _, structure = flat(([X, State(Y)], {"a": Pair(X, Y)}, Unnamed(X)))
    assert paths(structure) == [
        ("0", "0"), ("0", "1", "key"), ("0", "1", "count"), ("1", "a", "left"), ("1", "a", "right"),
        ("2", "0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("into", "contents"),
    [([1, 2], [3]), ({"a": 1}, {"b": 2}), (State(X), State(Y, 1)), (OrderedDict(a=1), {"c": 3})],
)
def test_objects_take_contents(into: Any, contents: Any) -> None:
    assert can_take(into)
    take(into, contents)
    assert into == contents


def test_objects_without_attributes_cannot_take_contents() -> None:
    class Fields(OrderedDict):  # type: ignore[type-arg]
        pass

    assert not can_take(Fields())
    assert not can_take(Pair(1, 2))
