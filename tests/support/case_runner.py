"""Runs before/after cases of passes.

Printed graphs are canonical, so equality of texts (comments aside) is the test. Each case checks
that every block round-trips, that AFTER is exact, that ``changed`` is honest, that the pass leaves
its input alone and changes nothing the second time, and what the checker says where one is wired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import fx

from compiler.errors import CommPlanError
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Placements
from compiler.ir.text import parse, print_graph
from tests.support.case_files import Block, Case, CaseError, full_text, name_of, plain, rewrite


class Remark(Protocol):
    """What a pass says about one match; ``kind`` is ``passed`` or ``missed``."""

    @property
    def kind(self) -> str: ...
    @property
    def reason(self) -> str: ...


class PassResult(Protocol):
    """What a pass returns."""

    @property
    def graph(self) -> SpmdGraph: ...
    @property
    def remarks(self) -> Sequence[Remark]: ...
    @property
    def changed(self) -> bool: ...


class Pass(Protocol):
    """A rewrite."""

    name: ClassVar[str]

    def apply(self, graph: SpmdGraph) -> PassResult: ...


@dataclass(frozen=True)
class Runner:
    """Runs cases.

    Attributes:
        registry: name of a pass -> what makes it from its options, all text.
        check: ``(source, target) -> (verdict, explanation)``, verdicts by name.
        facts: placements that blocks must state beside values; None: blocks state what they like.
    """

    registry: Mapping[str, Callable[..., Pass]]
    check: Callable[[SpmdGraph, SpmdGraph], tuple[str, str]] | None = None
    facts: Callable[[SpmdGraph], Mapping[fx.Node, Placements]] | None = None

    def run(self, case: Case, update: bool = False) -> None:
        """Check ``case``; with ``update``, rewrite its AFTER block instead of comparing it.

        Raises:
            CaseFailedError: the case does not hold.
            CaseError: an unknown pass.
        """
        passes = [self.made(case, line, spec) for line, spec in case.passes]
        assert case.before is not None
        if case.error:
            self.fails(case, passes)
            return
        before = self.block(case, case.before, printed=True)
        text = self.printed(before, case)
        result, missed, changed = self.applied(passes, before)
        found = self.printed(result, case)
        if self.printed(before, case) != text:
            case.fail("the pass changed the graph it was given")
        self.remarks(case, missed)
        self.compare(case, text, found, changed, update)
        again, _, changed_again = self.applied(passes, result)
        if changed_again or self.printed(again, case) != found:
            case.fail("a second run changes the result again:\n" + self.printed(again, case))
        self.verdicts(case, before, result, text == found)

    def made(self, case: Case, line: int, spec: str) -> Pass:
        """The pass that ``name{option=text, …}`` specifies."""
        name, _, options = spec.removesuffix("}").partition("{")
        if name not in self.registry:
            known = ", ".join(self.registry)
            raise CaseError(f"{case.file}:{line}: unknown pass {name!r}; known are {known}")
        pairs = (option.partition("=") for option in options.split(",") if option)
        return self.registry[name](**{k.strip().replace("-", "_"): v.strip() for k, _, v in pairs})

    def block(self, case: Case, block: Block, printed: bool) -> SpmdGraph:
        """The graph of a block; with ``printed``, the block must be exactly as it prints."""
        text = full_text(case, block)
        # Blank lines stand for those before the block, so that errors give the file's lines.
        lead = block.line - (text.count("\n") - block.text.count("\n"))
        parsed = parse("\n" * max(lead, 0) + text, file=str(case.file))
        facts = parsed.facts if self.facts is None else self.facts(parsed.graph)
        found = print_graph(parsed.graph, facts=facts, name=name_of(text))
        if printed and found != plain(text):
            case.fail(f"the block does not print as it stands, but as\n{found}", block.line)
        return parsed.graph

    def printed(self, graph: SpmdGraph, case: Case) -> str:
        """The text of ``graph`` under the name that the case's BEFORE has."""
        assert case.before is not None
        facts = self.facts(graph) if self.facts is not None else None
        return print_graph(graph, facts=facts, name=name_of(case.before.text))

    def applied(
        self, passes: Iterable[Pass], graph: SpmdGraph
    ) -> tuple[SpmdGraph, list[str], bool]:
        """The graph after ``passes``, reasons of what they missed, and whether one changed it."""
        missed: list[str] = []
        changed = False
        for each in passes:
            result = each.apply(graph)
            missed += [r.reason for r in result.remarks if str(r.kind) == "missed"]
            graph, changed = result.graph, changed or result.changed
        return graph, missed, changed

    def fails(self, case: Case, passes: Sequence[Pass]) -> None:
        assert case.before is not None
        expected = "\n".join(case.error)
        try:
            self.applied(passes, self.block(case, case.before, printed=False))
        except CommPlanError as error:
            # Trailing blanks do not survive in a directive.
            found = "\n".join(line.strip() for line in str(error).splitlines())
            if found != "\n".join(line.strip() for line in case.error):
                case.fail(f"another error\nexpected: {expected}\nfound: {error}")
            return
        case.fail(f"no error, expected: {expected}")

    def remarks(self, case: Case, missed: Sequence[str]) -> None:
        pairs = zip(case.missed, missed, strict=False)
        if len(missed) != len(case.missed) or any(part not in reason for part, reason in pairs):
            case.fail(f"missed remarks differ\nexpected: {list(case.missed)}\nfound: {missed}")

    def compare(self, case: Case, before: str, found: str, changed: bool, update: bool) -> None:
        if changed != (before != found):
            case.fail(f"changed is {changed}, and the result is\n{found}")
        if case.unchanged:
            if before != found:
                case.fail(f"expected UNCHANGED, found\n{found}")
            return
        assert case.after is not None
        if before == found:
            case.fail("AFTER equals BEFORE: write UNCHANGED", case.after.line)
        expected = plain(full_text(case, case.after))
        if expected != found and update:
            rewrite(case, found)
        elif expected != found:
            case.fail(f"AFTER differs\nexpected:\n{expected}\nfound:\n{found}", case.after.line)
        else:
            self.block(case, case.after, printed=True)

    def verdicts(self, case: Case, before: SpmdGraph, after: SpmdGraph, same: bool) -> None:
        if self.check is None:
            if case.wrong:
                case.fail(
                    "WRONG cannot be judged: the runner has no checker", case.wrong[0][0].line
                )
            return
        for source, target, wanted in (
            (before, before, "IDENTICAL"),
            (after, after, "IDENTICAL"),
            (before, after, "IDENTICAL" if same else "EQUIVALENT"),
        ):
            verdict, explanation = self.check(source, target)
            if verdict != wanted:
                case.fail(f"the checker says {verdict}, expected {wanted}: {explanation}")
        for block, expected in case.wrong:
            verdict, explanation = self.check(before, self.block(case, block, printed=True))
            wanted, _, part = (expected or "").partition(" ")
            if verdict != wanted or part not in explanation:
                case.fail(
                    f"the checker says of WRONG: {verdict} {explanation}\nexpected: {expected}",
                    block.line,
                )
