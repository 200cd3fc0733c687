"""Machine files: JSON, one per machine. A number a file does not have raises when asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler.cost.machine import NS_TO_PS, Machine
from compiler.cost.regimes import Curve, Regime, is_monotone
from compiler.cost.tables import (
    BYTES_PER_US,
    FLOP_PER_US,
    NS,
    Fused,
    Launch,
    LibraryClass,
    MachineError,
    Network,
    Protocol,
    Quantity,
    Table,
)
from compiler.ir.collectives import Kind

FOLDER = Path(__file__).parent / "machines"


def machines() -> tuple[str, ...]:
    """Names of the machines that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def load_machine(name: str | Path) -> Machine:
    """The machine of this name, or of the JSON file at this path.

    Raises:
        MachineError: no such machine, or a file that is not one.
    """
    path = Path(name)
    if path.suffix != ".json":
        path = FOLDER / f"{name}.json"
        if not path.exists() or path.parent != FOLDER:
            raise MachineError(
                f"no machine {str(name)!r}",
                found=f"known machines: {', '.join(machines())}",
                remedy="name one of these or a .json file written by commplan machine measure",
            )
    return parse_machine(read_json(path), path)


def machine_with(device: str) -> Machine | None:
    """The machine that comes with the package and has these GPUs, as the driver calls them."""
    shipped = map(load_machine, machines())
    return next((machine for machine in shipped if machine.device == device), None)


def read_json(path: Path) -> dict[str, Any]:
    """What a machine file says, as JSON values.

    Raises:
        MachineError: the file cannot be read or is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MachineError(
            "cannot read the machine file",
            where=str(path),
            found=f"{type(error).__name__}: {error}",
        ) from None
    if not isinstance(data, dict):
        raise MachineError(
            "a machine file is a JSON object", where=str(path), found=type(data).__name__
        )
    return data


def parse_machine(data: Mapping[str, Any], path: Path) -> Machine:
    """The machine that a file describes.

    Raises:
        MachineError: a field is missing, has another unit, or a curve falls.
    """
    try:
        return _machine(data, path)
    except (KeyError, TypeError, ValueError) as error:
        raise MachineError(
            "not a machine file",
            where=str(path),
            found=f"{type(error).__name__}: {error}",
            remedy="docs/machines.md lists the fields",
        ) from None


def _machine(data: Mapping[str, Any], path: Path) -> Machine:
    if "node" in data:
        node, name, title = load_machine(data["node"]), data["name"], data["title"]
        network = _network(data["network"], path)
        return replace(node, name=name, title=title, network=network, device="")
    return Machine(
        name=data["name"],
        title=data["title"],
        ranks_per_node=int(data["ranks_per_node"]),
        in_switch_reduction=bool(data["in_switch_reduction"]),
        link=_quantity(data.get("link"), BYTES_PER_US, path),
        memory=_quantity(data.get("memory"), BYTES_PER_US, path),
        matmul=_quantities(data.get("matmul", {}), FLOP_PER_US, path),
        launch={Launch(k): q for k, q in _quantities(data.get("launch", {}), NS, path).items()},
        tables=tuple(_table(table, path) for table in data["tables"]),
        network=_network(data["network"], path) if data.get("network") else None,
        device=str(data.get("device", "")),
    )


def _quantity(data: Mapping[str, Any] | None, unit: str, path: Path) -> Quantity | None:
    if data is None:
        return None
    quantity = Quantity(int(data["value"]), data["unit"], data["source"])
    if quantity.unit != unit or quantity.value <= 0 or not quantity.source:
        raise MachineError(
            f"a quantity needs a value above zero in {unit}, and a source",
            where=str(path),
            found=json.dumps(data),
        )
    return quantity


def _quantities(data: Mapping[str, Any], unit: str, path: Path) -> dict[str, Quantity]:
    quantities = {name: _quantity(one, unit, path) for name, one in data.items()}
    return {name: one for name, one in quantities.items() if one is not None}


def _table(data: Mapping[str, Any], path: Path) -> Table:
    regimes = tuple(Regime(*map(int, regime)) for regime in data["regimes"])
    kind = data["kind"]
    if not is_monotone(regimes):
        raise MachineError(
            "the regimes of a table do not start at 0 bytes, or time falls between them",
            where=f"{path}: {kind}, {data['ranks']} ranks, {data['library']}",
            found=json.dumps(data["regimes"]),
            remedy="write machine files with commplan machine fit or measure",
        )
    return Table(
        kind=Fused(kind) if "+" in kind else Kind(kind),
        ranks=int(data["ranks"]),
        library=data["library"],
        library_class=LibraryClass(data["class"]),
        launches=tuple(map(Launch, data["launches"])),
        curve=Curve(regimes),
        min_bytes=int(data["min_bytes"]),
        max_bytes=int(data["max_bytes"]),
        source=data["source"],
        median_error=data.get("median_error"),
        maximum_error=data.get("maximum_error_above_1mib"),
    )


def _network(data: Mapping[str, Any], path: Path) -> Network:
    link, source = _quantity(data.get("link"), BYTES_PER_US, path), data.get("source")
    if link is None or not source:
        raise MachineError(
            "a network needs its link and a source",
            where=str(path),
            found=f"a network that states {', '.join(data) or 'nothing'}",
            remedy="docs/machines.md lists the fields",
        )
    protocols = tuple(
        Protocol(p["name"], p["base_ns"] * NS_TO_PS, p["step_ns"] * NS_TO_PS, p["bytes_per_us"])
        for p in data["protocols"]
    )
    return Network(link, protocols, source)
