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
    base = {"name": "m", "title": "m"} if "network" in changes else minimal()
    path.write_text(machine_text(base | changes))
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
        (
            {"launch": {"later": {"value": 1, "unit": "ns", "source": "x"}}},
            "a name in launch must be one of eager, graph\n.*\n  found: 'later'",
        ),
        ({"tables": [{"kind": "all_reduce"}]}, r"tables\[0\].ranks is missing"),
        ({"tables": [TABLE | {"regimes": [[0, 5, 1], [9, 1, 0]]}]}, "time falls between them"),
        ({"tables": [TABLE | {"kind": "reduce"}]}, r"tables\[0\].kind must be one of all_reduce,"),
        ({"ranks_per_node": None}, "ranks_per_node must be a whole number from 1"),
        ({"node": "h100x8"}, "ranks_per_node is not a field"),
        ({"node": "nope", "network": {"protocols": []}}, "no machine 'nope'"),
        ({"node": "h100x8", "network": {"link": LINK, "protocols": []}}, "link and a source"),
        ({"node": "h100x8", "network": {"source": "x", "protocols": []}}, "link and a source"),
        (
            {"node": "h100x8", "network": {"source": "", "link": LINK, "protocols": []}},
            "link and a source",
        ),
        (
            {"node": "h100x8", "network": {"source": "x", "link": LINK}},
            "network.protocols is missing",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MachineError, match=message):
        load_machine(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "what", "value"),
    [
        ({"ranks_per_node": 0}, "ranks_per_node must be a whole number from 1 to 10**18", "0"),
        ({"ranks_per_node": True}, "ranks_per_node must be a whole number from 1", "True"),
        ({"ranks_per_node": 8.0}, "ranks_per_node must be a whole number from 1", "8.0"),
        ({"name": "../m"}, "name must be of letters, digits, ", "'../m'"),
        ({"in_switch_reduction": 1}, "in_switch_reduction must be true or false", "1"),
        ({"title": "a\x1b[31m"}, "title must be a printable text", r"'a\x1b[31m'"),
        ({"tabels": []}, "tabels is not a field; there are name, title, ", "[]"),
        ({"link": LINK | {"value": 10**400}}, "link.value must be a whole number from 0 to", "10"),
        ({"link": LINK | {"value": float("nan")}}, "link.value must be a whole number", "nan"),
        ({"link": LINK | {"value": True}}, "link.value must be a whole number", "True"),
        ({"link": LINK | {"valu": 1}}, "link.valu is not a field", "1"),
        ({"link": "x"}, "link must be an object", "'x'"),
        ({"matmul": [1]}, "matmul must be an object", "[1]"),
        ({"matmul": {"bfloat16": 5}}, "matmul.bfloat16 must be an object", "5"),
        ({"tables": {}}, "tables must be a list", "{}"),
        ({"tables": [3]}, "tables[0] must be an object", "3"),
        ({"tables": [TABLE | {"ranks": 1}]}, "tables[0].ranks must be a whole number from 2", "1"),
        ({"tables": [TABLE | {"regimes": [[1, 2]]}]},
         "tables[0].regimes[0] must be a list of 3 numbers", "[1, 2]"),
        ({"tables": [TABLE | {"median_error": "x"}]},
         "tables[0].median_error must be a number from 0, or null", "'x'"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(
    tmp_path: Path, changes: dict[str, Any], what: str, value: str
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(MachineError) as caught:
        load_machine(path)
    assert str(caught.value).startswith(what)
    assert f"\n  where: {path}\n  found: {value}" in str(caught.value)


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
    path.write_text("[" * 100_000)
    with pytest.raises(MachineError, match="RecursionError"):
        load_machine(path)
    path.write_text("{")
    with pytest.raises(MachineError, match="JSONDecodeError"):
        load_machine(path)


def test_a_table_as_read(tmp_path: Path) -> None:
    machine = load_machine(written(tmp_path, tables=[TABLE]))
    assert machine.collective_time_ps(Kind.ALL_REDUCE, 2000, (2, 1), launch="eager") == 7
    assert json.loads((tmp_path / "m.json").read_text())["tables"] == [TABLE]
    assert read_json(FOLDER / "h100x8.json")["gpu"].startswith("H100")
