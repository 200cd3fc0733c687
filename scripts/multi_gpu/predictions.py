"""What a machine file predicts, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from compiler.cost import Machine, MachineError
from compiler.cost.fused_kernels import PARTS
from compiler.cost.tables import Fused
from compiler.cost.units import PS_PER_US
from compiler.ir.collectives import Kind
from scripts.multi_gpu.links import HIDDEN

Row = dict[str, Any]


def sent_us(machine: Machine, kind: str, payload_bytes: int, ranks: int, launch: str) -> float:
    """What one collective or fused kernel takes on ``ranks`` ranks of a node.

    Raises:
        MachineError: the machine does not tell.
    """
    group = (ranks, 1)
    kinds: Sequence[Kind] = (Kind(kind),) if "+" not in kind else PARTS[Fused(kind)]
    if "+" in kind:
        time_ps = machine.fused_time_ps(Fused(kind), payload_bytes, group, launch=launch)
        if time_ps is not None:
            return time_ps / PS_PER_US
    times = (machine.collective_time_ps(k, payload_bytes, group, launch=launch) for k in kinds)
    return sum(times) / PS_PER_US


def busy_us(row: Row) -> float:
    """What the profiled call of a row of the model part took without gaps between kernels."""
    time_us: float = row["busy_us"] if "busy_us" in row else row["call_us"]
    return time_us


def name_of(row: Row) -> str:
    """A row of the model part, in words."""
    return f"{row['experts']} {row['call']} {row['tokens']}, {row['form']}"


def predicted(part: str, what: str, predicted_us: float, measured_us: float) -> Row:
    """A row; the error is predicted / measured - 1."""
    return {
        "part": part, "what": what, "predicted_us": predicted_us, "measured_us": measured_us,
        "error": predicted_us / measured_us - 1 if measured_us else None,
    }  # fmt: skip


def link_rows(machine: Machine, rows: Iterable[Row]) -> list[Row]:
    """Every measured payload, by its fastest library, beside the machine's time for it."""
    least = dict[tuple[str, int, str, int], float]()
    for one in rows:
        for payload_bytes, measured_us in one["rows"]:
            case = one["kind"], one["ranks"], one["launches"][0], payload_bytes
            least[case] = min(measured_us, least.get(case, measured_us))
    errors = []
    for (kind, ranks, launch, payload_bytes), measured_us in least.items():
        what = f"{kind}, {ranks} ranks, {launch}, {payload_bytes} bytes"
        try:
            time_us = sent_us(machine, kind, payload_bytes, ranks, launch)
        except MachineError:
            continue
        errors.append(predicted("links", what, time_us, measured_us))
    return errors


def kernel_rows(machine: Machine, rows: Iterable[Row], ranks: int) -> list[Row]:
    """Fused ops and what they replace: an all_reduce, a launch, and four payloads of memory."""
    errors = []
    for one in rows:
        payload_bytes, launch = one["rows"] * HIDDEN * 2, one["launch"]
        norm_us = machine.launch_ps(launch) / PS_PER_US
        norm_us += 4 * payload_bytes / machine.memory_bytes_per_us
        kinds = {
            "unfused": (Kind.ALL_REDUCE, norm_us),
            "op": (Fused.ALL_REDUCE_ADD_NORM, 0.0),
            "op, shares": (Fused.REDUCE_SCATTER_ADD_NORM_ALL_GATHER, 0.0),
        }
        for name, (kind, more_us) in kinds.items():
            time_us = sent_us(machine, str(kind), payload_bytes, ranks, launch) + more_us
            errors.append(predicted("kernels", f"{name}, {one['rows']} rows", time_us, one[name]))
    return errors


def model_rows(machine: Machine, rows: Iterable[Row], ranks: int) -> list[Row]:
    """Communication, and forwards as the form's own computation and predicted communication.

    Nothing overlaps. Computation is what kernels took that do not communicate; without a GPU, what
    the profiled call took beside communication.
    """
    errors = []
    for one in rows:
        sent = sum(
            count * sent_us(machine, kind, size, ranks, one["launch"])
            for kind, size, count in one["collectives"]
        )
        forward = busy_us(one) - one["communication_us"] + sent
        about = name_of(one)
        errors.append(predicted("communication", about, sent, one["communication_us"]))
        errors.append(predicted("forward", about, forward, one["time_us"]))
    return errors
