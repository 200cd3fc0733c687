"""Machine files: what they must state, and what asking for the rest says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.measurements import machine_text
from compiler.cost import MachineError, load_machine, machines
from compiler.cost.machine_files import FOLDER, read_json
from compiler.ir.collectives import Kind

SHIPPED = {
    "a100x8", "h100x8", "h200x8", "b200x8", "gb200", "l40sx8", "rtxpro6000x8", "h200x8-ib400",
}  # fmt: skip


def minimal() -> dict[str, Any]:
    return {"name": "m", "title": "m", "ranks_per_node": 2, "in_switch_reduction": False,
            "tables": []}  # fmt: skip


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "m.json"
    path.write_text(machine_text(minimal() | changes))
    return path


def test_shipped_machines() -> None:
    assert set(machines()) == SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_number_of_a_shipped_machine_has_a_source(name: str) -> None:
    machine = load_machine(name)
    quantities = [machine.link, machine.memory, *machine.matmul.values(), *machine.launch.values()]
    assert all(q is not None and q.source and q.value > 0 for q in quantities)
    assert {"bfloat16", "float32"} <= machine.matmul.keys()
    assert len(machine.launch) == 2
    assert {t.kind for t in machine.tables} >= set(Kind) - {Kind.BROADCAST}
    assert all(t.source and t.median_error is not None for t in machine.tables)


def test_unknown_names_list_the_known_ones() -> None:
    for name in ("h300", "../machines/h100x8"):
        with pytest.raises(MachineError, match="no machine") as caught:
            load_machine(name)
        assert "b200x8, gb200, h100x8" in str(caught.value)


def test_what_a_file_does_not_state_raises(tmp_path: Path) -> None:
    machine = load_machine(written(tmp_path))
    for ask, message in (
        (lambda: machine.memory_bytes_per_us, "a memory bandwidth"),
        (lambda: machine.matmul_flop_per_us(torch.int8), "a matmul rate for int8"),
        (lambda: machine.launch_ps("graph"), r"the cost of a launch \(graph\)"),
        (lambda: machine.lower_bound_ps(Kind.ALL_REDUCE, 8, (2, 1)), "the rate of its links"),
        (lambda: machine.collective_time_ps(Kind.ALL_REDUCE, 8, (2, 1), launch="eager"),
         "all_reduce over 2 ranks"),
    ):  # fmt: skip
        with pytest.raises(MachineError, match=message):
            ask()


TABLE = {
    "kind": "all_reduce", "ranks": 2, "library": "x 1", "class": "custom", "launches": ["eager"],
    "min_bytes": 8, "max_bytes": 16, "regimes": [[0, 5, 1]], "source": "here",
}  # fmt: skip
LINK = {"value": 1, "unit": "bytes/us", "source": "x"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": {"value": 1, "unit": "GB/s", "source": "x"}}, "above zero in bytes/us"),
        ({"memory": {"value": 0, "unit": "bytes/us", "source": "x"}}, "above zero in bytes/us"),
        ({"memory": {"value": 1, "unit": "bytes/us", "source": ""}}, "and a source"),
        ({"launch": {"later": {"value": 1, "unit": "ns", "source": "x"}}}, "not a machine file"),
        ({"tables": [{"kind": "all_reduce"}]}, "not a machine file"),
        ({"tables": [TABLE | {"regimes": [[0, 5, 1], [9, 1, 0]]}]}, "time falls between them"),
        ({"tables": [TABLE | {"kind": "reduce"}]}, "not a machine file"),
        ({"ranks_per_node": None}, "not a machine file"),
        ({"node": "h100x8"}, "not a machine file"),
        ({"node": "nope", "network": {}}, "no machine 'nope'"),
        ({"node": "h100x8", "network": {"link": LINK, "protocols": []}}, "link and a source"),
        ({"node": "h100x8", "network": {"source": "x", "protocols": []}}, "link and a source"),
        ({"node": "h100x8", "network": {"source": "", "link": LINK}}, "link and a source"),
        ({"node": "h100x8", "network": {"source": "x", "link": LINK}}, "not a machine file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MachineError, match=message):
        load_machine(written(tmp_path, **changes))


def test_a_network_without_its_source(tmp_path: Path) -> None:
    path = written(tmp_path, node="h100x8", network={"link": LINK, "protocols": []})
    with pytest.raises(MachineError) as caught:
        load_machine(path)
    assert str(caught.value) == (
        "a network needs its link and a source\n"
        f"  where: {path}\n"
        "  found: a network that states link, protocols\n"
        "  remedy: docs/machines.md lists the fields"
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    with pytest.raises(MachineError, match="cannot read the machine file"):
        load_machine(path)
    path.write_text("[]")
    with pytest.raises(MachineError, match="a machine file is a JSON object"):
        load_machine(path)
    path.write_text("{")
    with pytest.raises(MachineError, match="JSONDecodeError"):
        load_machine(path)


def test_a_table_as_read(tmp_path: Path) -> None:
    machine = load_machine(written(tmp_path, tables=[TABLE]))
    assert machine.collective_time_ps(Kind.ALL_REDUCE, 2000, (2, 1), launch="eager") == 7
    assert json.loads((tmp_path / "m.json").read_text())["tables"] == [TABLE]
    assert read_json(FOLDER / "h100x8.json")["gpu"].startswith("H100")
