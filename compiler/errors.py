"""Errors a user can cause. Each says what is wrong, where, what was found, and the remedy.

Broken internal invariants are ``assert`` statements with a message, never one of these.
"""

from __future__ import annotations

from collections.abc import Mapping


class CommPlanError(Exception):
    """A user's mistake: printed by the command line without a traceback.

    Args:
        what: what is wrong, one sentence without a full stop.
        where: the value, tensor, file or option it concerns; empty if ``what`` names it.
        found: what was found there, with both numbers where two numbers disagree.
        remedy: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", found: str = "", remedy: str = "") -> None:
        self.what, self.where, self.found, self.remedy = what, where, found, remedy
        parts = (("where", where), ("found", found), ("remedy", remedy))
        super().__init__("\n".join([what, *(f"  {name}: {text}" for name, text in parts if text)]))


class UndeclaredInputs(CommPlanError, UserWarning):  # noqa: N818 -- a warning by its kind
    """A warning: nothing says which inputs of a graph differ between ranks."""


class MeshError(CommPlanError):
    """A mesh, a replica group or a group name that is not well-formed or not known."""


class PlacementError(CommPlanError):
    """A placement that does not fit its value, or a value that breaks its placement."""


class CaptureError(CommPlanError):
    """A model that cannot be captured as one SPMD graph."""


class DivergenceError(CaptureError):
    """Ranks that do not run the same program."""


class ExchangeError(CommPlanError):
    """Ranks that did not arrive where all meet, or that failed.

    Attributes:
        reasons: rank -> why it failed.
        alone: the ranks are not at one place, so that none may go on.
    """

    def __init__(
        self,
        what: str,
        *,
        reasons: Mapping[int, str] | None = None,
        alone: bool = False,
        **rest: str,
    ) -> None:
        super().__init__(what, **rest)
        self.reasons, self.alone = dict(reasons or {}), alone


class GraphError(CommPlanError):
    """A graph that is not a well-formed SPMD graph."""


class PlanError(CommPlanError):
    """A plan that does not fit the graph it is applied to."""

    @classmethod
    def misfit(cls, found: str, where: str = "") -> PlanError:
        """Return the error that an assignment is of another graph, or none that can be computed."""
        what, remedy = "the plan does not fit the graph", "plan again for this graph"
        return cls(what, where=where, found=found, remedy=remedy)


class VerificationError(CommPlanError):
    """A rewritten graph that the checker did not call EQUIVALENT. It is never run."""


class KernelError(CommPlanError):
    """A tensor, a workspace or a group of ranks that the fused kernels do not serve."""
