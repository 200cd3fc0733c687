"""One captured, rewritten and proven graph of the model, with its guards and variants."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.utils._sympy.printers import PythonPrinter

from compiler.capture import Capture, Fixed
from compiler.capture.call_form import Arguments
from compiler.capture.pytrees import Structure, rebuilt
from compiler.ir import access
from compiler.ir.placement import Replicate
from compiler.plan.token_ranges import TokenTable
from compiler.runtime.bound_state import BoundState, GraphWithState, compilers_read_modules
from compiler.runtime.lowering import Lowered

Values = tuple[list[Any], list[Any]]
"""What a model holds of a graph's inputs, and what a call gives of them."""


def autocast_state() -> tuple[Any, ...]:
    """How autocast is set around a call: its casts are part of a trace."""
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    return enabled("cpu"), dtype("cpu"), enabled("cuda"), dtype("cuda")


def compiled(conditions: Iterable[sympy.Basic]) -> Callable[[Mapping[str, int]], bool]:
    """Whether all conditions hold for values of their symbols; each token may ask."""
    listed = list(conditions)
    printer = PythonPrinter()
    functions = {f for c in listed for f in c.atoms(sympy.Function)}
    names = {"math": math, **{f.func.__name__: f.func for f in functions}}
    source = " and ".join(f"({printer.doprint(condition)})" for condition in listed)
    code = compile(source or "True", "<conditions on sizes>", "eval")
    return lambda values: bool(eval(code, names, dict(values)))


NAMED = 4
"""Tensors of a call that are named where ranks say what they capture."""

CallKind = tuple[Structure, tuple[Any, ...], tuple[Any, ...]]
"""Tree of the arguments, autocast, and per leaf what must agree: ``(type, value)`` of constants."""


def call_kind(arguments: Arguments) -> CallKind:
    """What must agree for two calls to run one graph, sizes of two and more left out."""
    leaves = (
        (x.dtype, x.device, tuple(size if size < 2 else -1 for size in x.shape))
        if isinstance(x, torch.Tensor)
        else (type(x), x)
        for x in arguments.leaves
    )
    return arguments.spec, autocast_state(), tuple(leaves)


def text_of_call(names: Sequence[str], arguments: Arguments) -> str:
    """Return what all ranks must be called with, as text: tensors, sizes of two and more as n."""
    texts = [
        f"{name} {str(x.dtype).removeprefix('torch.')}"
        f"[{', '.join(str(size) if size < 2 else 'n' for size in x.shape)}]"
        for name, x in zip(names, arguments.leaves, strict=True)
        if isinstance(x, torch.Tensor)
    ]
    first, others = texts[:NAMED], texts[NAMED:]
    if others:
        digest = hashlib.blake2b("\n".join(others).encode(), digest_size=4).hexdigest()
        first.append(f"{len(others)} more of digest {digest}")
    return ", ".join(first) or "no tensors"


def varying_numbers(kind: CallKind, kinds: Iterable[CallKind]) -> tuple[int, ...]:
    """Leaves that are numbers, of which at least three values make a kind of call of their own."""
    *around, leaves = kind
    alike = [other[-1] for other in kinds if list(other[:-1]) == around]

    def values(at: int) -> int:
        rest = leaves[:at], leaves[at + 1 :]
        return sum((other[:at], other[at + 1 :]) == rest for other in alike)

    return tuple(
        at for at, leaf in enumerate(leaves) if leaf[0] in (int, float) and values(at) >= 3
    )


@dataclass(frozen=True)
class GuardedGraph:
    """A graph, and how to call it as the model is called.

    Attributes:
        variants: number of tokens -> what runs.
        symbol: the size that counts tokens; None where one variant serves for all.
        captured: how it was captured: state, trees of arguments and results, ranges of sizes.
        report: what the optimizer did (plan, verdict, remarks, statistics).
        compare_inputs: compares tensors between ranks; None if there is nobody to ask.
        compare_calls: likewise whole calls: name of a tensor -> what must be the same of it.
        in_step: ranks that collectives of the graph connect with this one.
    """

    variants: TokenTable[Lowered]
    symbol: str | None
    captured: Capture
    report: Any
    compare_inputs: Callable[[Mapping[str, torch.Tensor]], None] | None
    compare_calls: Callable[[Mapping[str, str]], None] | None = None
    in_step: frozenset[int] = frozenset()

    @cached_property
    def module(self) -> fx.GraphModule:
        """One of the graphs; their inputs are the same."""
        return self.variants.ranges()[0].plan.module

    def variant(self, arguments: Arguments) -> Lowered:
        """What runs for this call, a function of its shapes alone."""
        if self.counts_tokens is None:
            return self.variants.ranges()[0].plan
        at, dim = self.counts_tokens
        return self.variants.plan(arguments.leaves[at].shape[dim])

    @cached_property
    def counts_tokens(self) -> tuple[int, int] | None:
        """Position of the argument, and the dimension, whose size counts tokens.

        Caches are asked last: their sizes count tokens of former calls.
        """
        arguments = self.captured.arguments
        tensors = [i for i, x in enumerate(arguments) if isinstance(x, str)]
        places = [
            (arguments[at] in self.captured.cached, at, dim)
            for at, sizes in zip(tensors, self.sizes, strict=True)
            for dim, size in enumerate(sizes)
            if str(size) == self.symbol
        ]
        return min(places)[1:] if places else None

    def covers(self, num_tokens: int) -> bool:
        """Whether calls with so many tokens may run this graph.

        Where no size counts them, tokens are the elements of the first argument that is not in a
        cache if it holds integers, else its rows.
        """
        if self.counts_tokens is not None:
            lower, upper = self.captured.ranges.get(str(self.symbol), (0, None))
            return lower <= num_tokens and (upper is None or num_tokens <= upper)
        names = [x for x in self.captured.arguments if isinstance(x, str)]
        at = next((i for i, name in enumerate(names) if name not in self.captured.cached), None)
        if at is None:
            return False
        (first,) = (
            x for x in access.node_of(self.module.graph, "placeholder") if x.target == names[at]
        )
        rows = self.sizes[at][:-1] if access.dtype(first).is_floating_point else self.sizes[at]
        count = math.prod(rows)
        return not isinstance(count, int) or count == num_tokens

    @cached_property
    def sizes(self) -> tuple[tuple[Any, ...], ...]:
        """Per tensor argument, its traced sizes as ints and sympy expressions."""
        by_name = {str(n.target): n for n in access.node_of(self.module.graph, "placeholder")}
        return tuple(
            tuple(s if isinstance(s, int) else s.node.expr for s in access.shape(by_name[name]))
            for name in self.captured.arguments
            if isinstance(name, str)
        )

    @cached_property
    def replicated(self) -> tuple[str, ...]:
        """Tensor arguments taken to be the same on all ranks."""
        placed = self.captured.graph.inputs
        return tuple(
            name
            for name in self.captured.arguments
            if isinstance(name, str) and any(isinstance(p, Replicate) for p in placed[name])
        )

    def accepts(self, arguments: Arguments) -> bool:
        """Whether the sizes of this call are those the graph was traced for.

        A function of the shapes alone, so that all ranks decide alike.
        """
        return self._fits(tuple(x.shape for x in arguments.leaves if isinstance(x, torch.Tensor)))

    def state(self, model: nn.Module) -> BoundState:
        """The tensors of ``model`` that the graph reads."""
        return self._bound(model)[0]

    def _fits(self, shapes: tuple[torch.Size, ...]) -> bool:
        named, conditions = self._conditions
        values: dict[str, int] = {}
        for traced, shape in zip(named, shapes, strict=True):
            for expected, size in zip(traced, shape, strict=True):
                if isinstance(expected, int):
                    if expected != size:
                        return False
                elif values.setdefault(expected, size) != size:
                    return False
        return conditions(values)

    @cached_property
    def _conditions(
        self,
    ) -> tuple[tuple[tuple[int | str, ...], ...], Callable[[Mapping[str, int]], bool]]:
        """Per tensor argument, its sizes as numbers or names; what named sizes must satisfy.

        Sizes that are computed from others have names of their own.
        """
        derived: list[sympy.Basic] = []

        def named(size: int | sympy.Expr) -> int | str:
            if isinstance(size, int):
                return size
            if not size.is_Symbol:
                name = sympy.Symbol(f"derived{len(derived)}", integer=True)
                derived.append(sympy.Eq(size, name))
                return str(name)
            return str(size)

        names = tuple(tuple(map(named, sizes)) for sizes in self.sizes)
        conditions = [*derived, *self.captured.guards]
        symbols = {name for sizes in names for name in sizes}
        if any(str(s) not in symbols for c in conditions for s in c.free_symbols):
            return names, lambda values: False  # no size of a call tells what it is
        for name, (lower, upper) in self.captured.ranges.items():
            if name in symbols:
                symbol = sympy.Symbol(name, integer=True)
                conditions.append(sympy.Ge(symbol, lower))
                conditions += [] if upper is None else [sympy.Le(symbol, upper)]
        return names, compiled(conditions)

    def values(self, model: nn.Module, arguments: Arguments) -> Values:
        """All that the graph reads in this call: what the model holds, and the call's tensors."""
        state, leaves, _ = self._bound(model)
        tensors = [arguments.leaves[i] for i in leaves]
        return state.tensors(), [x if x.is_contiguous() else x.contiguous() for x in tensors]

    def inputs(self, values: Values) -> list[Any]:
        """The values in the order of the graph's placeholders."""
        both = values[0] + values[1]
        return [both[i] for i in self._binding[0][2]]

    def compiled(self, variant: Lowered, values: Values) -> tuple[nn.Module, list[Any]]:
        """A variant as compilers take it, and what to call it with."""
        tensors, arguments = values
        names = self._binding[0][0].names
        if id(variant) not in self._holding:
            live = compilers_read_modules()
            self._holding[id(variant)] = GraphWithState(variant.module, names) if live else None
        if (graph := self._holding[id(variant)]) is None:
            return variant.module, self.inputs(values)
        graph.hold(tensors)
        return graph, arguments

    def result(
        self, variant: Lowered, outputs: Sequence[Any], values: Values, arguments: Arguments
    ) -> Any:
        """The model's result from the outputs of a variant, after writing back what it updates.

        Tensors that are written in place get their new values, containers their new contents.
        """
        for index, at, leaf in self.written:
            state, own = values
            whole = state[at] if at < len(state) else own[at - len(state)]
            into = whole if leaf is None else arguments.leaves[leaf]
            if index not in variant.in_place or into is not whole:
                into.copy_(outputs[index])
        leaves = [x.value if isinstance(x, Fixed) else outputs[x] for x in self.captured.results]
        return rebuilt(self.captured.out_spec, leaves, list(arguments.objects), arguments.leaves)

    def _bound(self, model: nn.Module) -> tuple[BoundState, list[int], list[int]]:
        """What the model holds, leaves that are read, place of each placeholder's value."""
        if not self._binding:
            arguments = enumerate(self.captured.arguments)
            at = {name: i for i, name in arguments if isinstance(name, str)}
            leaves = {name: at[name] for name in self.placeholders if name in at}
            state = {
                name: key for name, key in self.captured.state.items() if name in self.placeholders
            }
            others = [n for n in self.placeholders if n not in leaves and n not in state]
            constants = {n: self.captured.constants.get(n) for n in others}
            bound = BoundState(model, state, constants)
            place = {name: i for i, name in enumerate((*bound.names, *leaves))}
            order = [place[name] for name in self.placeholders]
            self._binding.append((bound, list(leaves.values()), order))
        return self._binding[0]

    @cached_property
    def _binding(self) -> list[tuple[BoundState, list[int], list[int]]]:
        return []

    @cached_property
    def _holding(self) -> dict[int, GraphWithState | None]:
        return {}

    @cached_property
    def written(self) -> tuple[tuple[int, int, int | None], ...]:
        """Graph output, the value that it is the new one of, and its leaf if it is an argument."""
        order = self._binding[0][2]
        at = {name: order[index] for index, name in enumerate(self.placeholders)}
        leaves = {n: i for i, n in enumerate(self.captured.arguments) if isinstance(n, str)}
        written = self.captured.mutations.items()
        return tuple((index, at[name], leaves.get(name)) for index, name in written)

    @cached_property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the graph's inputs in order."""
        return tuple(str(n.target) for n in access.node_of(self.module.graph, "placeholder"))
