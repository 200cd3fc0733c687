"""Calls of one optimized model, as the roll call of its ranks counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.distributed as dist

from compiler.capture.rank_traces import by_value, ranks_text
from compiler.errors import ExchangeError
from compiler.runtime.roll_call import RollCall
from compiler.runtime.whereabouts import Failure, Phase

REASONS_S = 3.0
"""Where a collective fails, the reason of the rank at fault is waited for so long."""


def is_of_collective(error: Exception) -> bool:
    """Return whether an error tells of other ranks; gloo's has no class of its own."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


class ModelCalls:
    """Counts the calls of one model, and tells the other ranks of its failures.

    Attributes:
        count: calls that were begun, without those that failed before they ran.
        in_step: ranks that collectives of all its graphs connect with this one.
    """

    def __init__(self, roll_call: RollCall, name: str) -> None:
        """Nothing is called yet; ``name`` is what people call the model."""
        self._roll_call = roll_call
        self._model = roll_call.add(name)
        self.count = 0
        self.in_step: frozenset[int] | None = None

    def connect(self, ranks: frozenset[int]) -> None:
        """Note the ranks that a graph of the model connects."""
        self.in_step = ranks if self.in_step is None else self.in_step & ranks
        self._roll_call.in_step = self.in_step

    def begin(self) -> None:
        """Say that a graph is chosen for the next call."""
        self.count += 1
        call = self._roll_call
        call.model, call.calls, call.phase = self._model, self.count, Phase.CHOOSING
        call.in_step = self.in_step or frozenset()

    def go_on(self, *, runs: bool) -> None:
        """Say that the graph of the call runs; without one there is nothing to wait for."""
        self._roll_call.phase = Phase.RUNNING if runs else Phase.ENDED

    def end(self) -> None:
        """Say that the call has ended well."""
        self._roll_call.phase, self._roll_call.failure = Phase.ENDED, Failure()

    def refuse(self, error: BaseException) -> None:
        """Tell the others that the call failed before its graph ran: it does not count."""
        self.count -= 1
        self._roll_call.fail(error, call_ran=False)

    def run(self, run: Callable[..., Any], inputs: Iterable[Any]) -> Any:
        """Return what the graph of the call computes.

        Raises:
            ExchangeError: a rank that cannot finish the call broke a collective.
        """
        try:
            return run(*inputs)
        except Exception as error:
            roll_call = self._roll_call
            reasons = roll_call.failures(REASONS_S) if is_of_collective(error) else {}
            if not reasons:
                roll_call.fail(error)
                raise
            failure = ExchangeError(
                f"{ranks_text(reasons)} left call {self.count} of {self._model[0]}",
                found=by_value(reasons),
                remedy="see what these ranks report; then start all ranks anew",
                alone=True,
            )
            roll_call.fail(failure)
            raise failure from error
