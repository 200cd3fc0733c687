"""What lint knows of a graph before it looks for mistakes, and how it writes about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

from torch import fx

from compiler.analysis.reductions import zeros
from compiler.analysis.replication import Classes, replicated_over, replication
from compiler.ir import access
from compiler.ir.collectives import OPS, WAIT, Collective, Kind, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Placement, Replicate
from compiler.ir.rules import Call, Meaning, Term, meaning_of
from compiler.ir.text.print import Printer, lines
from compiler.linter.finding import Finding

REDUCING = (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER)


@dataclass(frozen=True, eq=False)
class Known:
    """Facts about one graph.

    Attributes:
        graph: the graph.
        unsure: calls whose numbers are one rank's, and may be others on other ranks.
        states: per value and axis, what the ranks hold, as ``sweep`` finds out. A value that
            would be whole had the author reduced it counts as whole from its finding on.
        reported: values whose missing reduction has been reported, with the axis.
    """

    graph: SpmdGraph
    unsure: Set[fx.Node] = frozenset()
    states: dict[fx.Node, dict[str, Placement]] = field(default_factory=dict)
    reported: set[tuple[fx.Node, str]] = field(default_factory=set)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Axes of more than one rank."""
        return tuple(axis for axis, ranks in self.graph.mesh.axes.items() if ranks > 1)

    @cached_property
    def classes(self) -> Mapping[fx.Node, Classes]:
        """Who holds the same, exactly."""
        return replication(self.graph)

    @cached_property
    def zeros(self) -> frozenset[fx.Node]:
        """Values that are zero everywhere."""
        return zeros(self.graph)

    @cached_property
    def meanings(self) -> Mapping[fx.Node, Meaning | None]:
        """Meanings over the reals: conversions between floating-point types are identities."""
        return {node: _over_reals(node, rule) for node, rule in self.graph.meanings.items()}

    @cached_property
    def constants(self) -> frozenset[fx.Node]:
        """Values that no input takes part in."""
        found: set[fx.Node] = set()
        for node in self.graph.graph.nodes:
            if node.op == "call_function" and all(x in found for x in node.all_input_nodes):
                found.add(node)
        return frozenset(found)

    @cached_property
    def live(self) -> frozenset[fx.Node]:
        """Values that something returned, sent or asserted depends on."""
        found: set[fx.Node] = set()
        for node in reversed(self.graph.graph.nodes):
            if node in found or not access.has_result(node) or is_send(node):
                found.add(node)
                found.update(node.all_input_nodes)
        return frozenset(found)

    @cached_property
    def awaited(self) -> Mapping[fx.Node, frozenset[str]]:
        """Axes over which a later reduction adds up the value, or something linear in it."""
        found: dict[fx.Node, set[str]] = {node: set() for node in self.graph.graph.nodes}
        for node in reversed(self.graph.graph.nodes):
            for x, axes in self._awaited_by(node, found[node]):
                found[x] |= axes
        return {node: frozenset(axes) for node, axes in found.items()}

    def _awaited_by(self, node: fx.Node, axes: set[str]) -> Iterator[tuple[fx.Node, set[str]]]:
        """Operands in which ``node`` is linear, and the axes over which they are added up."""
        if (what := self.collective(node)) is not None:
            if what.kind in REDUCING:
                yield what.operand, axes | set(self.group_axes(what) or ())
        elif node.target is WAIT:
            yield access.operands(node)[0], axes
        elif (rule := self.meanings.get(node)) is not None:
            read = access.operands(node)
            yield from ((read[i], axes) for term in rule.terms or () for i in term.operands)

    def collective(self, node: fx.Node) -> Collective | None:
        """The collective that ``node`` starts."""
        return collective(node) if node.target in OPS else None

    def group_axes(self, what: Collective) -> tuple[str, ...] | None:
        """Axes of more than one rank that the group spans; None if it is no product of axes."""
        spanned = self.graph.mesh.axes_of(what.group)
        return None if spanned is None else tuple(a for a in spanned if a in self.axes)

    def ranks(self, axes: Iterable[str]) -> int:
        """Number of ranks along ``axes``."""
        return math.prod(self.graph.mesh.axes[axis] for axis in axes)

    def whole(self, node: fx.Node, axes: Iterable[str]) -> frozenset[str]:
        """Those of ``axes`` along which all ranks are sure to hold the same.

        What only would be the same, had the author reduced it, has been blamed already: its ranks
        hold different values, and a later reduction does not count one value several times.
        """
        same, groups = self.classes.get(node), self.graph.mesh.groups
        return frozenset(
            a
            for a in axes
            if isinstance(self.states[node][a], Replicate)
            and same is not None
            and replicated_over(same, groups[a])
        )

    def is_scaled(self, node: fx.Node, count: int, factor: Fraction = Fraction(1)) -> bool:
        """Whether constant factors, together or one of them, make 1 / count on the way here.

        Args:
            node: the value.
            count: how often it is counted.
            factor: what it is multiplied by where it is read.
        """
        own = float(factor)
        return is_share(own, count) or any(
            is_share(own * past, count) or is_share(scale(term), count)
            for _, term, past in self.linear_past(node)
        )

    def is_scaled_later(self, node: fx.Node, factor: float, past: float = 1.0) -> bool:
        """Whether all that reads ``node`` is multiplied by ``factor``, or may be."""
        return bool(node.users) and all(
            self._is_scaled_by(reader, factor, past) for reader in node.users
        )

    def _is_scaled_by(self, node: fx.Node, factor: float, past: float) -> bool:
        if node in self.unsure:
            return True
        if node.target is WAIT:
            return self.is_scaled_later(node, factor, past)
        rule = self.meanings.get(node)
        if rule is None or rule.terms is None or [len(t.reads) for t in rule.terms] != [1]:
            return False
        past *= scale(rule.terms[0])
        return is_share(past, 1 / factor) or self.is_scaled_later(node, factor, past)

    def is_rescaled(self, node: fx.Node) -> bool:
        """Whether any factor that could be 1 / count was applied on the way to ``node``."""
        for step, term, _ in self.linear_past(node):
            read = access.operands(step)
            others = [read[i] for i in term.reads]
            single = (x for x in others if access.is_tensor(x) and access.tensor(x).numel() == 1)
            if abs(scale(term)) != 1 or any(single) or term.map == ("divide",):
                return True
        return False

    def linear_past(self, node: fx.Node) -> Iterator[tuple[fx.Node, Term, float]]:
        """The ops of one term that ``node`` was computed by, back to where sums or others are.

        Yields:
            the value, its term, and the product of the factors from there on.
        """
        stack, seen = [(node, 1.0)], {node}
        while stack:
            step, factor = stack.pop()
            rule = self.meanings.get(step)
            if rule is None or rule.terms is None or len(rule.terms) != 1:
                continue
            (term,) = rule.terms
            factor *= scale(term)
            yield step, term, factor
            read = access.operands(step)
            before = dict.fromkeys(read[i] for i in term.operands if read[i] not in seen)
            seen.update(before)
            stack += [(x, factor) for x in before]

    @cached_property
    def _printer(self) -> Printer:
        return Printer(self.graph.graph, self.graph.mesh, {}, strict=False)

    @cached_property
    def _rows(self) -> Mapping[fx.Node, str]:
        found = {}
        for line in lines(self.graph.graph):
            for node in (line.node, line.start):
                if node is not None:
                    found[node] = self._printer.line(line)
        return found

    def name(self, node: fx.Node) -> str:
        """``%7``."""
        return f"%{self._printer.numbers[node]}"

    def op(self, node: fx.Node) -> str:
        """``aten.add.Tensor``, ``comm.all_reduce``, ``input x``."""
        if node.op in ("placeholder", "get_attr"):
            return f"input {str(node.target)!r}"
        if node.target is WAIT:
            node = access.operands(node)[0]
        if node.target in OPS:
            return f"comm.{OPS[node.target]}"
        return self._printer.op(node)

    def finding(self, rule: str, node: fx.Node, problem: str, remedy: str) -> Finding:
        """A finding about ``node``."""
        path, line = access.source_location(node) or ("", 0)
        return Finding(
            rule=rule,
            problem=problem,
            remedy=remedy,
            op=self.op(node),
            value=self.name(node),
            text=self._rows[node].strip(),
            path=path,
            line=line,
            layer=access.layer_path(node),
        )


def is_send(node: fx.Node) -> bool:
    """Whether the node sends its operand to another rank, as pipeline stages do."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name if schema is not None else ""
    return name in ("_c10d_functional::isend", "_c10d_functional::batch_p2p_ops", "c10d::send")


def _over_reals(node: fx.Node, rule: Meaning | None) -> Meaning | None:
    """``rule`` without regard to rounding: operands in other types are taken in the result's."""
    if rule is None or rule.terms is not None:
        return rule
    call = Call.of(node)
    to = call.result_dtypes[0]
    if to is None or not to.is_floating_point:
        return rule
    dtypes = tuple(to if d is not None and d.is_floating_point else d for d in call.dtypes)
    return rule if dtypes == call.dtypes else meaning_of(replace(call, dtypes=dtypes))


def scale(term: Term) -> float:
    """What the author multiplied by; a mean divides by its addends' number, not by the ranks'."""
    is_mean = isinstance(term.map, tuple) and term.map[0] == "sum"
    return 1.0 if is_mean else float(term.coefficient)


def is_share(factor: float, count: float) -> bool:
    """Whether ``count`` times the factor is one but for its sign and a literal's rounding."""
    return abs(abs(factor) * count - 1) < 1e-6


def concrete_shape(node: fx.Node) -> tuple[int, ...]:
    """Sizes with every symbol at its hint."""
    return tuple(access.concrete(size) for size in access.shape(node))


def listed(axes: Iterable[str]) -> str:
    """``tp``, or ``tp and ep``."""
    return " and ".join(axes)


__all__ = [
    "REDUCING",
    "Known",
    "concrete_shape",
    "is_send",
    "is_share",
    "listed",
]
