"""Functions in several forms: written right otherwise, and what looks like that."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.check import Verdict, check
from compiler.check.all_blocks import equal_in_blocks
from compiler.ir.graph import SpmdGraph
from tests.support.graphs import agree, function

XY = '%0 "x": f64[4, 8] {tp: V}, %1 "y": f64[4, 8] {tp: V}'


@dataclass(frozen=True)
class Case:
    """A function, written in another way, and what looks like it and is not."""

    source: str
    right: str
    wrong: tuple[str, ...]
    inputs: str = XY
    mesh: str = "mesh <tp = 4>"

    def graph(self, text: str) -> SpmdGraph:
        """The function ``text``: values are numbered on from the inputs, the last are returned."""
        *calls, returned = [line.strip() for line in text.strip().splitlines()]
        first = self.inputs.count("%")
        lines = [f"%{first + i}: {call}" for i, call in enumerate(calls)]
        return function(self.inputs, *lines, f"return {returned}", mesh=self.mesh)

    def holds(self) -> None:
        """Check that the right form is proved, and the comparison in blocks refuses others.

        ``check`` finds counterexamples first, so that a wrong law is caught only where the
        comparison in blocks is asked itself.
        """
        source, right = self.graph(self.source), self.graph(self.right)
        assert agree(source, right)
        assert check(source, right).verdict is Verdict.EQUIVALENT
        for text in self.wrong:
            wrong = self.graph(text)
            assert not agree(source, wrong)
            assert not equal_in_blocks(source, wrong, {})
