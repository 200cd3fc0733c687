"""Which machine plans are made for."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch
from torch import nn

from compiler.cost import Launch, Machine, MachineError, load_machine, machine_with
from compiler.errors import CommPlanError

AUTO = "auto"


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
