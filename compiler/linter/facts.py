"""The evidence that lint goes by, and how it writes about a graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from torch import fx

from compiler.analysis.placements import (
    PARTIAL,
    REDUCING,
    REPLICATE,
    VARYING,
    Violation,
    placements,
)
from compiler.analysis.reductions import zeros
from compiler.analysis.replication import replicated_over, replication
from compiler.ir import access
from compiler.ir.collectives import WAIT, Collective, collective
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Partial, Placement, Placements
from compiler.ir.rules import BROADCAST, RESHAPE, Call, Meaning, Term, meaning_of
from compiler.ir.text.print import Printer, lines
from compiler.linter.addends import is_compressed, is_scale
from compiler.linter.finding import Finding

ADDING = ("sum", "product")
"""Reductions that count equal operands as often as there are ranks."""


@dataclass(frozen=True, eq=False)
class LintFacts:
    """Facts about one graph.

    Attributes:
        source: the graph.
        unsure: calls whose numbers are one rank's, and may be others on other ranks.
    """

    source: SpmdGraph
    unsure: Set[fx.Node] = frozenset()

    @cached_property
    def graph(self) -> SpmdGraph:
        """The graph over the reals: conversions between floating-point types are identities."""
        rules = {node: _over_reals(node, rule) for node, rule in self.source.meanings.items()}
        return replace(self.source, copied=rules)

    @cached_property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The nodes of the graph, in program order."""
        return tuple(self.graph.graph.nodes)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Axes of more than one rank."""
        return tuple(axis for axis, ranks in self.graph.mesh.axes.items() if ranks > 1)

    @cached_property
    def analysis(self) -> tuple[Mapping[fx.Node, Placements], tuple[Violation, ...]]:
        """Placements, and the mistakes: the first at each node and axis, in graph order.

        After a mistake the analysis goes on with what the author most likely intended.
        """
        mistakes: dict[tuple[fx.Node, str], Violation] = {}

        def intended(violation: Violation) -> Placements | None:
            node, axis, operands = violation.node, violation.axis, violation.operands
            match violation.kind:
                case "wrong-group":
                    return violation.intended if self.is_wrong_group(violation) else None
                case "nonlinear-on-partial" if is_compressed(self.graph, operands[0]):
                    return None
                case "nonlinear-on-partial" if is_scale(self.graph, node):
                    return None
                case "missing-reduction" if not self.is_missing(violation):
                    return violation.placements
                case "sharded-meets-whole":
                    sure = [x for x in self.whole(violation) if self.equal(x, (axis,))]
                    if not sure:
                        return violation.intended
                    operands = sure[0], operands[1]
            mistakes.setdefault((node, axis), replace(violation, operands=operands))
            return violation.intended

        return placements(self.graph, intended), tuple(mistakes.values())

    def placement(self, node: fx.Node, axis: str) -> Placement:
        """Return what the ranks of ``axis`` hold of a value; of groups nothing is known."""
        of, _ = self.analysis
        by_axis = dict(zip(self.graph.mesh.axes, of.get(node, ()), strict=False))
        return by_axis.get(axis, VARYING)

    def partial_axes(self, node: fx.Node) -> list[str]:
        """Return the axes over which a value is a partial result."""
        return [a for a in self.axes if isinstance(self.placement(node, a), Partial)]

    def whole(self, violation: Violation) -> list[fx.Node]:
        """Return the operands, constants apart, that are whole where they should be cut."""
        operands = access.operands(violation.node)
        pairs = zip(operands, violation.placements, violation.intended, strict=True)
        return [x for x, p, q in pairs if p == REPLICATE != q and x not in self.constants]

    def is_wrong_group(self, violation: Violation) -> bool:
        """Return whether a reduction counts equal values and leaves addends over another axis."""
        reduction = collective(violation.node)
        if reduction is None or reduction.op not in ADDING or PARTIAL not in violation.placements:
            return False
        equal = self.equal(reduction.operand, self.spanned(reduction))
        count = self.ranks(equal)
        return bool(equal) and not self.counts_ranks(violation.node, reduction, count)

    def is_missing(self, violation: Violation) -> bool:
        """Return whether a partial sum is used as if it were reduced, and never reduced later.

        That is: multiplied by a shard, or added to a value that is the same on all ranks.
        """
        node, term, count = violation.node, violation.term, self.ranks((violation.axis,))
        assert term is not None, "missing in a term"
        if any(isinstance(violation.placements[i], Partial) for i in term.operands):
            return True
        added = [access.operands(node)[i] for i in term.operands]
        return (
            PARTIAL in violation.placements
            and violation.axis not in self.awaited[node]
            and all(violation.placements[i] == REPLICATE for i in term.reads)
            and zeros(self.graph).isdisjoint(added)
            and not any(self.is_scaled(x, count, term.coefficient) for x in added)
        )

    def rule(self, node: fx.Node) -> Meaning | None:
        """Return the op rule of a call, None where there is none."""
        return self.graph.meanings.get(node)

    @cached_property
    def constants(self) -> frozenset[fx.Node]:
        """Values that no input takes part in."""
        constants: set[fx.Node] = set()
        for node in self.nodes:
            if node.op == "call_function" and constants.issuperset(node.all_input_nodes):
                constants.add(node)
        return frozenset(constants)

    @cached_property
    def live(self) -> frozenset[fx.Node]:
        """Values that something returned, sent or asserted depends on."""
        live: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if node in live or not access.has_result(node) or is_send(node):
                live.update((node, *node.all_input_nodes))
        return frozenset(live)

    @cached_property
    def awaited(self) -> Mapping[fx.Node, Set[str]]:
        """Axes over which a later reduction adds up the value, or something linear in it."""
        awaited: dict[fx.Node, set[str]] = {node: set() for node in self.nodes}
        for node in reversed(self.nodes):
            axes, operands, rule = awaited[node], access.operands(node), self.rule(node)
            if (what := collective(node)) is not None and what.kind in REDUCING:
                awaited[what.operand] |= axes | set(self.spanned(what))
            elif rule is not None and rule.terms:
                for i in {i for term in rule.terms for i in term.operands}:
                    awaited[operands[i]] |= axes
        return awaited

    def spanned(self, what: Collective) -> tuple[str, ...]:
        """Return the axes of more than one rank that the group spans.

        Where it is not a product of axes, the group itself.
        """
        axes = self.graph.mesh.axes_of(what.group)
        return (what.group,) if axes is None else tuple(a for a in axes if a in self.axes)

    def ranks(self, names: Iterable[str]) -> int:
        """Return the number of ranks along axes, or of a group."""
        return math.prod(self.graph.mesh.group(name).axis_size for name in names)

    def equal(self, node: fx.Node, names: Iterable[str]) -> frozenset[str]:
        """Return those axes or groups whose ranks are sure to hold the same.

        After a mistake the ranks hold different values, even where the placement is what the
        author meant: a later reduction does not count one value several times.
        """
        classes, mesh = replication(self.graph).get(node), self.graph.mesh
        return frozenset(
            n for n in names if classes is not None and replicated_over(classes, mesh.group(n))
        )

    def counts_ranks(self, node: fx.Node, reduction: Collective, ranks: int) -> bool:
        """Return whether equal operands are added on purpose.

        That is: ranks are counted, or 1 / ranks is applied before or after.
        """
        readers = [reader for wait in node.users for reader in wait.users]
        divided = bool(readers) and all(self.is_scaled(reader, ranks) for reader in readers)
        return (
            reduction.operand in self.constants
            or divided
            or self.is_scaled_later(node, 1 / ranks)
            or self.is_scaled(reduction.operand, ranks)
        )

    def is_scaled(self, node: fx.Node, count: int, factor: Fraction = Fraction(1)) -> bool:
        """Return whether constant factors, together or one of them, make 1 / count on the way here.

        Args:
            node: the value.
            count: how often it is counted.
            factor: what it is multiplied by where it is read.
        """
        own = float(factor)
        return _is_share(own, count) or any(
            _is_share(own * past, count) or _is_share(_scale(term), count)
            for _, term, past in self.linear_past(node)
        )

    def is_scaled_later(self, node: fx.Node, factor: float, past: float = 1.0) -> bool:
        """Return whether all that reads ``node`` is multiplied by ``factor``, or may be."""

        def is_scaled(reader: fx.Node) -> bool:
            if reader in self.unsure:
                return True
            if reader.target is WAIT:
                return self.is_scaled_later(reader, factor, past)
            rule = self.rule(reader)
            if rule is None or rule.terms is None or [len(t.reads) for t in rule.terms] != [1]:
                return False
            product = past * _scale(rule.terms[0])
            return _is_share(product, 1 / factor) or self.is_scaled_later(reader, factor, product)

        return bool(node.users) and all(map(is_scaled, node.users))

    def is_rescaled(self, node: fx.Node) -> bool:
        """Return whether any factor that could be 1 / count was applied on the way to ``node``."""
        for step, term, _ in self.linear_past(node):
            read = access.operands(step)
            others = [read[i] for i in term.reads]
            single = (x for x in others if access.is_tensor(x) and access.tensor(x).numel() == 1)
            if abs(_scale(term)) != 1 or any(single) or term.map == ("divide",):
                return True
        return False

    @cached_property
    def copies(self) -> Mapping[fx.Node, Mapping[fx.Node, float]]:
        """Return, of every value, the values that it is a sum of multiples of, with factors."""
        copies: dict[fx.Node, Mapping[fx.Node, float]] = {}
        for node in self.nodes:
            rule, read = self.rule(node), access.operands(node)
            terms = () if rule is None or rule.terms is None else rule.terms
            total: dict[fx.Node, float] = {}
            plain = all(len(t.reads) <= 1 and t.map in (BROADCAST, RESHAPE) for t in terms)
            for term in terms if plain else ():
                for x in (read[i] for i in term.operands):
                    for base, factor in copies[x].items():
                        total[base] = total.get(base, 0) + factor * float(term.coefficient)
            copies[node] = total if terms and plain else {node: 1.0}
        return copies

    def linear_past(self, node: fx.Node) -> Iterator[tuple[fx.Node, Term, float]]:
        """Walk the ops of one term that ``node`` was computed by, back to sums and other ops.

        Yields:
            the value, its term, and the product of the factors from there on.
        """
        stack, seen = [(node, 1.0)], {node}
        while stack:
            step, factor = stack.pop()
            rule = self.rule(step)
            if rule is None or rule.terms is None or len(rule.terms) != 1:
                continue
            (term,) = rule.terms
            factor *= _scale(term)
            yield step, term, factor
            read = access.operands(step)
            before = dict.fromkeys(read[i] for i in term.operands if read[i] not in seen)
            seen.update(before)
            stack += [(x, factor) for x in before]

    @cached_property
    def _printer(self) -> Printer:
        return Printer(self.graph.graph, self.graph.mesh, {}, strict=False)

    def name(self, node: fx.Node) -> str:
        """Return ``%7``."""
        return f"%{self._printer.numbers[node]}"

    def op(self, node: fx.Node) -> str:
        """Return ``aten.add.Tensor``, ``comm.all_reduce``, ``input x``."""
        if node.op in ("placeholder", "get_attr"):
            return f"input {str(node.target)!r}"
        if (what := collective(node)) is not None:
            return f"comm.{what.kind}"
        return self._printer.op(access.operands(node)[0] if node.target is WAIT else node)

    def finding(self, rule: str, node: fx.Node, problem: str, remedy: str) -> Finding:
        """Return a finding about ``node``."""
        path, number = access.source_location(node) or ("", 0)
        line = next(line for line in lines(self.graph.graph) if node in line.nodes)
        return Finding(
            rule=rule,
            problem=problem,
            remedy=remedy,
            op=self.op(node),
            value=self.name(node),
            text=self._printer.line(line).strip(),
            path=path,
            line=number,
            layer=access.layer_path(node),
        )


def is_send(node: fx.Node) -> bool:
    """Return whether the node sends its operand to another rank, as pipeline stages do."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name if schema is not None else ""
    return name in ("_c10d_functional::isend", "_c10d_functional::batch_p2p_ops", "c10d::send")


def _over_reals(node: fx.Node, rule: Meaning | None) -> Meaning | None:
    """Return ``rule`` without regard to rounding: operands of other types count as the result's."""
    if rule is None or rule.terms is not None:
        return rule
    call = Call.of(node)
    to = call.result_dtypes[0]
    if to is None or not to.is_floating_point:
        return rule
    dtypes = tuple(to if d is not None and d.is_floating_point else d for d in call.dtypes)
    return rule if dtypes == call.dtypes else meaning_of(replace(call, dtypes=dtypes))


def _scale(term: Term) -> float:
    """Return the author's factor; a mean divides by its addends' number, not by the ranks'."""
    is_mean = isinstance(term.map, tuple) and term.map[0] == "sum"
    return 1.0 if is_mean else float(term.coefficient)


def _is_share(factor: float, count: float) -> bool:
    """Return whether ``count`` times the factor is 1 but for its sign and a literal's rounding."""
    return abs(abs(factor) * count - 1) < 1e-6


def listed(axes: Iterable[str]) -> str:
    """Return ``tp``, or ``tp and ep``."""
    return " and ".join(axes)
