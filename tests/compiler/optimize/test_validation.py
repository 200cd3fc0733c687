"""Which machine plans are made for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compiler import CommPlanError
from compiler.cost import Launch, MachineError
from compiler.optimize.validation import AUTO, device_of, launch_of, machine_of

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("named", [None, AUTO])
@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_no_machine(named: str | None, device: torch.device | None) -> None:
    assert machine_of(named, device) is None


def test_named_and_given() -> None:
    machine = machine_of("h200x8")
    assert machine is not None
    assert machine.name == "h200x8"
    assert machine_of(machine, CUDA) is machine


@pytest.mark.parametrize(("gpu", "name"), [("NVIDIA H200", "h200x8"), ("NVIDIA Abacus", None)])
def test_auto_is_the_machine_with_these_gpus(
    monkeypatch: pytest.MonkeyPatch, gpu: str, name: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: gpu)
    found = machine_of(AUTO, CUDA)
    assert (found and found.name) == name


def test_what_is_no_machine_is_refused() -> None:
    with pytest.raises(MachineError) as caught:
        machine_of(8)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "machine= must be a machine\n  found: int\n"
        '  remedy: give a name, the path of a machine file, a Machine, None, or "auto"'
    )
    with pytest.raises(MachineError, match="cannot read the machine file"):
        machine_of(Path("nowhere.json"))


def test_launches() -> None:
    assert [launch_of("eager"), launch_of("graph")] == [Launch.EAGER, Launch.GRAPH]
    with pytest.raises(CommPlanError, match="unknown launch\n  found: 'twice'"):
        launch_of("twice")


def test_where_a_model_is() -> None:
    assert device_of(torch.nn.Linear(1, 1)) == torch.device("cpu")
    assert device_of(torch.nn.ReLU()) is None
