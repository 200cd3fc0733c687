"""Verdicts: whether two SPMD graphs compute the same function. Imports ir only."""

from compiler.check.equivalence import check
from compiler.check.verdict import Counterexample, Report, Verdict

__all__ = ["Counterexample", "Report", "Verdict", "check"]
