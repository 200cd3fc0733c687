"""The arguments of the public functions, checked; the machine that plans are made for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from compiler.cost import Launch, Machine, MachineError, load_machine, machine_with
from compiler.errors import CommPlanError
from compiler.plan.planner_options import POLICIES, PlannerOptions
from compiler.runtime.lowering import check_kernels

AUTO = "auto"


def planner_options(
    policy: str,
    machine: str | Path | Machine | None,
    launch: str,
    *,
    device: torch.device | None = None,
    widen: bool = False,
    kernels: str = "auto",
) -> PlannerOptions:
    """The planner's options, from arguments as ``optimize_allreduce`` takes them.

    Raises:
        CommPlanError: a policy, way to launch or choice of kernels that there is not.
        MachineError: no such machine.
    """
    if policy not in POLICIES:
        raise CommPlanError(
            "unknown policy", found=repr(policy), remedy=f"one of {', '.join(POLICIES)}"
        )
    check_kernels(kernels)
    return PlannerOptions(
        policy, machine_of(machine, device), launch_of(launch), widen, fuse=kernels != "off"
    )


def machine_of(
    named: str | Path | Machine | None, device: torch.device | None = None
) -> Machine | None:
    """The machine that plans compare on; None: they compare by bytes.

    Args:
        named: a machine, its name, the path of a machine file, None for none, or "auto": the
            machine with this device, if there is one.
        device: where the model runs; None if it is not known.

    Raises:
        MachineError: no such machine.
    """
    if named is None or isinstance(named, Machine):
        return named
    if not isinstance(named, str | Path):
        raise MachineError(
            "machine= must be a machine",
            found=type(named).__name__,
            remedy='give a name, the path of a machine file, a Machine, None, or "auto"',
        )
    if named != AUTO:
        return load_machine(named)
    if device is None or device.type != "cuda":
        return None
    return machine_with(torch.cuda.get_device_name(device))


def device_of(model: nn.Module) -> torch.device | None:
    """Where a model's first parameter or buffer is; None if it has none."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return None if tensor is None else tensor.device


def launch_of(named: str) -> Launch:
    """How kernels are launched.

    Raises:
        CommPlanError: there is no such way.
    """
    try:
        return Launch(named)
    except ValueError:
        choices = ", ".join(map(str, Launch))
        raise CommPlanError(
            "unknown launch", found=repr(named), remedy=f"one of {choices}"
        ) from None


def check_tokens(tokens: object) -> None:
    """Raise CommPlanError unless ``tokens`` is a count or None."""
    if tokens is not None and not _is_count(tokens, least=1):
        raise CommPlanError(
            "tokens= must be a count of tokens",
            found=repr(tokens),
            remedy="an integer of >= 1, or None",
        )


def check_pipeline(observers: object, bisect_limit: object) -> None:
    """Raise CommPlanError unless passes can be told to these, and so many can be run."""
    if not isinstance(observers, Sequence) or not all(map(callable, observers)):
        raise CommPlanError(
            "observers= must be a sequence of functions",
            found=repr(observers),
            remedy="functions of one PassRecord, as in observers=[print]",
        )
    if bisect_limit is not None and not _is_count(bisect_limit, least=0):
        raise CommPlanError(
            "bisect_limit= must be a number of passes",
            found=repr(bisect_limit),
            remedy="an integer of >= 0, or None",
        )


def _is_count(number: object, *, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least
