"""Cache what an analysis says of a graph on the graph: both are dropped together."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast


class Analyzed(Protocol):
    """What analyses are about: a graph, or facts that are cached on one."""

    @property
    def analyses(self) -> dict[Hashable, Any]:
        """Analysis and its further arguments -> result."""


P = ParamSpec("P")
S = TypeVar("S", bound=Analyzed)
T = TypeVar("T")


def cached(analysis: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Return ``analysis``, run once for each subject and further arguments, which are hashable."""
    parameters = signature(analysis)

    @wraps(analysis)
    def lookup(subject: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        bound = parameters.bind(subject, *args, **kwargs)
        bound.apply_defaults()
        key = analysis, tuple(bound.arguments.values())[1:]
        if key not in subject.analyses:
            subject.analyses[key] = analysis(subject, *args, **kwargs)
        return cast(T, subject.analyses[key])

    return lookup
