"""The only readers of ``node.args`` and ``node.meta``, so that the rest of the compiler is typed.

A node's tensor operands are numbered in the order in which its arguments list them, repeats
included; what else it is called with are its *static arguments*.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import fx
from torch._ops import OpOverload

from compiler.errors import GraphError

Shape = tuple[int | torch.SymInt, ...]
STATE_TYPES = (
    "set meta['val'] to a tensor of its shape and dtype on every node, "
    "for example with torch.fx.passes.fake_tensor_prop.FakeTensorProp"
)
"""What to do where a node does not state, or not truly, what it computes."""


def inside(folder: str | Path) -> str:
    """Return what paths of files in ``folder`` begin with, and those in ``{folder}2`` do not."""
    return os.path.join(folder, "")


TORCH = inside(Path(torch.__file__).parent)


class RankNumber:
    """A number that code computed from its rank: this rank's value, and every rank's.

    Behaves as this rank's number wherever the graph runs; ``values[r]`` is the one of rank r.
    """

    values: tuple[Any, ...]

    def __new__(cls, value: float, values: tuple[float, ...]) -> Self:
        """Take ``value``, this rank's entry of ``values``."""
        self = super().__new__(cls, value)  # type: ignore[call-arg]
        self.values = values
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep every rank's value in copies and pickles."""
        return type(self), (self.real, self.values)  # type: ignore[attr-defined]


class RankInt(RankNumber, int):
    """An integer that differs between ranks."""


class RankFloat(RankNumber, float):
    """A float that differs between ranks."""


@dataclass(frozen=True)
class Operand:
    """The place of a tensor operand inside static arguments; ``index`` counts as in operands()."""

    index: int


def value(node: fx.Node) -> Any:
    """Return what the node computes: a tensor (fake, meta or real), a number or SymInt, or a tuple.

    Raises:
        GraphError: the node has no ``meta["val"]``.
    """
    if "val" not in node.meta:
        raise GraphError(
            f"value %{node.name} has no meta['val']",
            where=node.format_node() or node.name,
            remedy=STATE_TYPES,
        )
    return node.meta["val"]


def is_tensor(node: fx.Node) -> bool:
    """Return whether the node computes one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def tensor(node: fx.Node) -> torch.Tensor:
    """Return the tensor the node computes (fake, meta or real)."""
    example = value(node)
    assert isinstance(example, torch.Tensor), f"%{node.name} is not one tensor: {type(example)}"
    return example


def shape(node: fx.Node) -> Shape:
    """Return the per-rank shape of the node's tensor."""
    return tuple(tensor(node).shape)


def dtype(node: fx.Node) -> torch.dtype:
    """Return the element type of the node's tensor."""
    return tensor(node).dtype


def payload_bytes(node: fx.Node, tokens: int | None = None) -> int:
    """Return the bytes of the node's tensor on one rank; symbols count ``tokens`` or their hint."""
    example, count = tensor(node), 1
    for size in example.shape:
        count *= size if isinstance(size, int) else concrete(size, tokens)
    return count * example.element_size()


def concrete(size: int | torch.SymInt, tokens: int | None = None) -> int:
    """Return ``size`` with every symbol replaced by ``tokens``, or by its hint where that is None.

    A size read out of data has no hint and then counts as 1: bytes of such a value are those of
    one row.
    """
    if isinstance(size, int):
        return size
    if tokens is None:
        hint = size.node.hint
        return int(hint) if hint is not None else 1
    return _at(size.node.expr, tokens)


def concrete_shape(node: fx.Node) -> tuple[int, ...]:
    """Return the sizes of the node's tensor with every symbol at its hint."""
    return tuple(concrete(size) for size in shape(node))


@lru_cache(maxsize=1 << 14)
def _at(expression: Any, tokens: int) -> int:
    return int(expression.subs(dict.fromkeys(expression.free_symbols, tokens)))


def strides(node: fx.Node) -> tuple[int | torch.SymInt, ...]:
    """Return the strides of the node's tensor, in elements."""
    return tuple(tensor(node).stride())


def _leaves(node: fx.Node) -> list[Any]:
    leaves: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), leaves.append)
    return leaves


def has_result(node: fx.Node) -> bool:
    """Return whether the node has a result: assertions, outputs and export's guards have none."""
    if node.op == "call_module" and not node.users:
        return False
    schema = getattr(node.target, "_schema", None)
    return node.op != "output" and (schema is None or bool(schema.returns))


def is_operand(node: fx.Node) -> bool:
    """Return whether other nodes take this one as data: all but numbers derived from shapes."""
    example = node.meta.get("val")
    if isinstance(example, torch.Tensor):
        return True
    if not has_result(node):
        return False
    if isinstance(example, torch.SymInt | torch.SymFloat | torch.SymBool):
        return bool(unbacked(example))
    return not isinstance(example, int | float | bool)


def is_unbacked(symbol: str) -> bool:
    """Return whether PyTorch takes a symbol of this name for a number read out of a tensor."""
    return symbol.startswith(("u", "zuf"))


def unbacked(number: object) -> frozenset[str]:
    """Return the symbols of ``number`` that stand for data read out of a tensor."""
    if not isinstance(number, torch.SymInt | torch.SymFloat | torch.SymBool):
        return frozenset()
    return frozenset(filter(is_unbacked, map(str, number.node.expr.free_symbols)))


def operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the node's data operands in argument order, repeats included."""
    return tuple([x for x in _leaves(node) if isinstance(x, fx.Node) and is_operand(x)])


def rank_constants(node: fx.Node) -> tuple[Any, ...]:
    """Return the node's arguments whose value depends on the rank."""
    return tuple([x for x in _leaves(node) if isinstance(x, RankNumber)])


def on_rank(argument: Any, rank: int) -> Any:
    """Return the static argument as it is on ``rank``."""
    return argument.values[rank] if isinstance(argument, RankNumber) else argument


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return schema argument name -> value, with defaults; data operands appear as ``Operand``.

    Numbers derived from shapes appear as their SymInt or int. A target without a schema gets
    positional names ``0``, ``1``, …
    """
    count = 0

    def read(item: Any) -> Any:
        nonlocal count
        if isinstance(item, fx.Node):
            if not is_operand(item):
                return item.meta.get("val")
            count += 1
            return Operand(count - 1)
        if isinstance(item, list | tuple):
            return tuple(read(x) for x in item)
        if isinstance(item, slice):
            return ("slice", read(item.start), read(item.stop), read(item.step))
        return item

    positional = [read(x) for x in node.args]
    named = {name: read(x) for name, x in node.kwargs.items()}
    if not isinstance(node.target, OpOverload):
        return {str(i): x for i, x in enumerate(positional)} | named
    names, _, defaults = parameters(node.target)
    return defaults | dict(zip(names, positional, strict=False)) | named


@lru_cache(maxsize=1 << 12)
def parameters(target: OpOverload) -> tuple[tuple[str, ...], int, dict[str, Any]]:
    """Return the names of an op's arguments, how many may be positional, and default values."""
    listed = target._schema.arguments
    defaults = {a.name: a.default_value for a in listed if a.has_default_value()}
    tuples = {name: tuple(x) if isinstance(x, list) else x for name, x in defaults.items()}
    return tuple(a.name for a in listed), sum(not a.kwarg_only for a in listed), tuples


def call(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and named arguments as the graph writes them."""
    return tuple(node.args), dict(node.kwargs)


def written_arguments(node: fx.Node) -> dict[str, Any]:
    """Return schema argument name -> what the graph writes there, defaults filled in."""
    assert isinstance(node.target, OpOverload), f"%{node.name} has no schema: {node.target}"
    names, _, defaults = parameters(node.target)
    written = dict(zip(names, node.args, strict=False)) | node.kwargs
    return dict.fromkeys(names) | defaults | written


def with_argument(node: fx.Node, name: str, written: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the node's call with ``written`` for schema argument ``name``."""
    (args, kwargs), position = call(node), list(written_arguments(node)).index(name)
    if position < len(args):
        return (*args[:position], written, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: written}


def set_argument(node: fx.Node, name: str, written: Any) -> None:
    """Replace what the node's call writes for schema argument ``name``."""
    node.args, node.kwargs = with_argument(node, name, written)


def map_operands(node: fx.Node, convert: Callable[[fx.Node], fx.Node]) -> tuple[Any, Any]:
    """Return ``(args, kwargs)`` of the node with every node in them mapped by ``convert``."""
    return fx.node.map_arg(node.args, convert), fx.node.map_arg(node.kwargs, convert)


def results(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the values that an output node returns, in order, numbers and None left out."""
    return tuple(x for x in _leaves(node) if isinstance(x, fx.Node))


def returned(graph: fx.Graph) -> Any:
    """Return what the graph returns, nested as it is written: values, numbers and None."""
    return output(graph).args[0]


def projection(node: fx.Node) -> int | None:
    """Return the index a ``getitem`` picks from several results, None for other nodes."""
    if node.target is not operator.getitem or not isinstance(node.args[1], int):
        return None
    return node.args[1]


def computed_by(node: fx.Node) -> fx.Node:
    """Return the op that ``node`` is a result of: ``node``, but for one of several results."""
    return node if projection(node) is None else operands(node)[0]


def state_key(node: fx.Node) -> str:
    """Return the key of the model's tensor that a placeholder stands for; empty if it is none.

    AOTAutograd, which also makes exported programs functional, describes every placeholder.
    """
    described: Any = node.meta.get("desc")
    while hasattr(described, "base"):  # a part of a tensor subclass
        described = described.base
    key = getattr(described, "target", "")
    return key if isinstance(key, str) else ""


def is_literal(key: str) -> bool:
    """Return whether an attribute is a tensor that code writes out: torch.tensor([2, 0, 1]).

    Tracers of PyTorch have no other names for these, and these for nothing else.
    """
    return re.fullmatch(r"(lifted_tensor_|_tensor_constant)\d+", key.rpartition(".")[2]) is not None


def layer_path(node: fx.Node) -> str:
    """Return the dotted path of the module the node comes from, empty if capture recorded none."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = [entry for entry in stack.values() if isinstance(entry, tuple)]
    if not entries or str(entries[-1][0]).startswith("_empty_nn_module_stack"):
        return ""
    path = str(entries[-1][0])
    return path.removeprefix("L['self']").removeprefix("L__self__").lstrip("._")


def source_location(node: fx.Node) -> tuple[str, int] | None:
    """Return path and line of the model code the node comes from, None if capture recorded none.

    The innermost frame outside torch counts: where the model calls a layer, not inside the layer.
    """
    frames = re.findall(r'File "(.+)", line (\d+)', str(node.meta.get("stack_trace") or ""))
    own = [frame for frame in frames if not frame[0].startswith((TORCH, "<eval_with_key>"))]
    if not frames:
        return None
    file, line = (own or frames)[-1]
    return str(file), int(line)


def source_line(node: fx.Node) -> str:
    """Return ``file.py:12`` where the node comes from, empty if capture recorded none."""
    location = source_location(node)
    return f"{Path(location[0]).name}:{location[1]}" if location else ""


def source_path(node: fx.Node) -> str:
    """Return ``models/moe.py:12``: below the working directory the path from there, else a name."""
    location = source_location(node)
    if location is None or not Path(location[0]).is_relative_to(Path.cwd()):
        return source_line(node)
    return f"{Path(location[0]).relative_to(Path.cwd())}:{location[1]}"


def place(node: fx.Node) -> str:
    """Return the line of model code the node comes from; the node as text if none is recorded."""
    return source_line(node) or str(node.format_node())


def node_of(graph: fx.Graph, op: str) -> tuple[fx.Node, ...]:
    """Return all nodes of one kind (``placeholder``, ``get_attr``, ``output``, …), in order."""
    return tuple(n for n in graph.nodes if n.op == op)


def output(graph: fx.Graph) -> fx.Node:
    """Return the graph's output node.

    Raises:
        GraphError: it has none, or several.
    """
    outputs = node_of(graph, "output")
    if len(outputs) != 1:
        raise GraphError(
            "the graph does not end in one output node",
            found=f"{len(outputs)} output nodes among {len(graph.nodes)} nodes",
            remedy="end it with graph.output(...)",
        )
    return outputs[0]
