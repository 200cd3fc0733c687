"""Options of the backend, checked before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from compiler.cost import Machine
from compiler.errors import CommPlanError
from compiler.optimize.validation import planner_options
from compiler.switches import checks_calls

INNER = ("inductor", "eager")
ON_FAILURE = ("warn", "raise")


@dataclass(frozen=True)
class BackendOptions:
    """What ``torch.compile(backend="commplan", options={…})`` takes.

    Attributes:
        policy: as in ``optimize_allreduce``.
        machine: likewise; "auto" is the machine with the GPUs that the graph computes on.
        launch: likewise.
        verify: likewise.
        kernels: likewise.
        inner: what compiles the rewritten graph: "inductor", or "eager", which runs it op by op.
        on_failure: what all ranks do where one cannot plan a graph: "warn" once and compile it as
            the author wrote it, or "raise".
        timeout_s: seconds that a rank waits for the others; None: half of the process group's
            timeout.
        debug: likewise; every run of a compiled graph is compared.
        inductor: Inductor's own options, as ``torch.compile(options={…})`` takes them without a
            backend: ``{"triton.cudagraphs": True}``.
    """

    policy: str = "cost"
    machine: str | Path | Machine | None = "auto"
    launch: str = "graph"
    verify: bool = True
    kernels: str = "auto"
    inner: str = "inductor"
    on_failure: str = "warn"
    timeout_s: float | None = None
    debug: bool = False
    inductor: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any] | None, mode: str | None = None) -> BackendOptions:
        """The options of one ``torch.compile`` call.

        Args:
            values: option -> value; those left out have their default.
            mode: mode of Inductor, such as "reduce-overhead"; its options are Inductor's.

        Raises:
            CommPlanError: an option that there is not, or a value that it does not take.
            MachineError: no such machine.
        """
        names = [option.name for option in fields(cls)]
        for name in values or {}:
            if name not in names:
                close = get_close_matches(str(name), names, 1)
                raise CommPlanError(
                    f"the backend has no option {name!r}" + (f": {close[0]!r}?" * bool(close)),
                    found=f"it has {', '.join(names)}",
                    remedy='pass options of Inductor as options={"inductor": {…}}',
                )
        checks = {"debug": True} if checks_calls() else {}
        options = cls(**{**_of_mode(mode), **(values or {}), **checks})
        options.check()
        return options

    def check(self) -> None:
        """Raise CommPlanError, or MachineError, for a value that an option does not take."""
        planner_options(self.policy, self.machine, self.launch, kernels=self.kernels)
        _check_one_of("inner", self.inner, INNER)
        _check_one_of("on_failure", self.on_failure, ON_FAILURE)
        for name in ("verify", "debug"):
            if not isinstance(getattr(self, name), bool):
                raise _refused(name, getattr(self, name), "True or False")
        is_number = isinstance(self.timeout_s, int | float) and not isinstance(self.timeout_s, bool)
        if self.timeout_s is not None and not (is_number and self.timeout_s > 0):
            raise _refused("timeout_s", self.timeout_s, "seconds above 0, or None")
        if not isinstance(self.inductor, Mapping):
            raise _refused("inductor", self.inductor, 'a mapping: {"triton.cudagraphs": True}')
        _check_inductor(self.inductor)

    @property
    def timeout(self) -> timedelta | None:
        """How long a rank waits for the others."""
        return None if self.timeout_s is None else timedelta(seconds=self.timeout_s)


def _of_mode(mode: str | None) -> dict[str, Any]:
    if mode in (None, "default"):
        return {}
    modes: Mapping[str, Mapping[str, Any]] = torch._inductor.list_mode_options()
    _check_one_of("mode", mode, tuple(modes))
    return {"inductor": modes[str(mode)]}


def _check_inductor(patches: Mapping[str, Any]) -> None:
    from torch._inductor import config

    config_names = config.get_config_copy()  # type: ignore[attr-defined, unused-ignore]
    if unknown := [name for name in patches if str(name).replace("-", "_") not in config_names]:
        close = get_close_matches(str(unknown[0]), config_names, 1)
        raise CommPlanError(
            f"Inductor has no option {unknown[0]!r}",
            found="options['inductor']",
            remedy=f"did you mean {close[0]!r}?" if close else "see torch._inductor.list_options()",
        )


def _check_one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _refused(name, value, f"one of {', '.join(choices)}")


def _refused(name: str, value: object, remedy: str) -> CommPlanError:
    return CommPlanError(f"option {name!r} does not take this", found=repr(value), remedy=remedy)
