"""Machines whose numbers are round, for tests that need to know what pays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compiler.cost import Machine
from compiler.cost.machine_files import parse_machine

SOURCE = "made up for tests"


def data(
    ranks: int,
    *,
    memory: int = 1000,
    link: bool = True,
    start_ns: int = 100,
    all_to_all_fs: int | None = None,
) -> dict[str, Any]:
    """A machine file: collectives of any payload take a start, and a nanosecond per byte or two.

    Args:
        ranks: of the groups it knows.
        memory: bytes per microsecond; the less, the more sharing rows pays.
        link: whether it states its links.
        start_ns: what a collective takes for no bytes.
        all_to_all_fs: what an all_to_all takes per byte; None: the machine knows none.
    """

    def quantity(value: int, unit: str) -> dict[str, Any]:
        return {"value": value, "unit": unit, "source": SOURCE}

    alpha_ps = start_ns * 1000
    tables = [
        {
            "kind": kind, "ranks": ranks, "library": "test 1", "class": "nccl",
            "launches": ["eager", "graph"], "min_bytes": 1, "max_bytes": 1 << 30,
            "regimes": [[0, alpha_ps, beta_fs]], "source": SOURCE,
        }
        for kind, beta_fs in (("all_reduce", 1_900_000), ("reduce_scatter", 1_000_000),
                              ("all_gather", 1_000_000), ("all_to_all", all_to_all_fs))
        if beta_fs is not None
    ]  # fmt: skip
    return {
        "name": "round", "title": "round numbers", "ranks_per_node": ranks,
        "in_switch_reduction": False, "device": "NVIDIA Round",
        **({"link": quantity(2000, "bytes/us")} if link else {}),
        "memory": quantity(memory, "bytes/us"),
        "matmul": {
            "float32": quantity(10**6, "FLOP/us"), "bfloat16": quantity(10**7, "FLOP/us"),
        },
        "launch": {"eager": quantity(50, "ns"), "graph": quantity(5, "ns")},
        "tables": tables,
    }  # fmt: skip


def machine(ranks: int, **options: Any) -> Machine:
    """The machine of ``data``."""
    return parse_machine(data(ranks, **options), Path("round.json"))


def written(folder: Path, ranks: int, **options: Any) -> Path:
    """The machine of ``data`` as a file."""
    path = folder / "round.json"
    path.write_text(json.dumps(data(ranks, **options)))
    return path
