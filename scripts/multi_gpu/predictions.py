"""What a machine file predicts, beside what was measured, and which targets are met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.cost import Machine, MachineError
from compiler.cost.tables import Fused
from compiler.ir.collectives import Kind
from scripts.multi_gpu.forms import BY_HAND, PLANNED
from scripts.multi_gpu.links import HIDDEN
from scripts.multi_gpu.model import PREFILL

PS_PER_US = 10**6
GAIN, GAIN_TOKENS = 1.21, 8192
WITHIN = 0.10
PARTS_OF = {
    Fused.ALL_REDUCE_ADD_NORM: (Kind.ALL_REDUCE,),
    Fused.REDUCE_SCATTER_ADD_NORM_ALL_GATHER: (Kind.REDUCE_SCATTER, Kind.ALL_GATHER),
}
"""Collectives that a fused kernel stands for where its own time is not known."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Something that had to be shown.

    Attributes:
        what: what it is.
        met: whether it is met; None where nothing was measured.
        found: the figures.
    """

    what: str
    met: bool | None
    found: str


def sent_us(machine: Machine, kind: str, payload_bytes: int, ranks: int, launch: str) -> float:
    """What one collective or fused kernel takes on ``ranks`` ranks of a node.

    Raises:
        MachineError: the machine does not tell.
    """
    group = (ranks, 1)
    kinds: Sequence[Kind] = (Kind(kind),) if "+" not in kind else PARTS_OF[Fused(kind)]
    if "+" in kind:
        known = machine.fused_time_ps(Fused(kind), payload_bytes, group, launch=launch)
        if known is not None:
            return known / PS_PER_US
    times = (machine.collective_time_ps(k, payload_bytes, group, launch=launch) for k in kinds)
    return sum(times) / PS_PER_US


def predicted(part: str, what: str, predicted_us: float, measured_us: float) -> Row:
    """A row; the error is predicted / measured - 1."""
    return {
        "part": part, "what": what, "predicted_us": predicted_us, "measured_us": measured_us,
        "error": predicted_us / measured_us - 1 if measured_us else None,
    }  # fmt: skip


def link_rows(machine: Machine, rows: Iterable[Row]) -> list[Row]:
    """Every measured payload of every table beside the machine's time for it."""
    found = []
    for one in rows:
        launch = one["launches"][0]
        for payload_bytes, measured_us in one["rows"]:
            what = f"{one['kind']}, {one['ranks']} ranks, {launch}, {payload_bytes} bytes"
            try:
                time_us = sent_us(machine, one["kind"], payload_bytes, one["ranks"], launch)
            except MachineError:
                continue
            found.append(predicted("links", what, time_us, measured_us))
    return found


def kernel_rows(machine: Machine, rows: Iterable[Row], ranks: int) -> list[Row]:
    """Fused ops and what they replace: an all_reduce, a launch, and four payloads of memory."""
    found = []
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
            found.append(predicted("kernels", f"{name}, {one['rows']} rows", time_us, one[name]))
    return found


def model_rows(machine: Machine, rows: Iterable[Row], ranks: int) -> list[Row]:
    """Communication, and forwards as the form's own computation and predicted communication.

    Nothing overlaps. Computation is what kernels took that do not communicate; without a GPU, what
    the call took beside communication.
    """
    found = []
    for one in rows:
        sent = sum(
            count * sent_us(machine, kind, size, ranks, one["launch"])
            for kind, size, count in one["collectives"]
        )
        busy = one.get("busy_us", one["time_us"])
        forward = busy - one["communication_us"] + sent
        about = f"{one['experts']} {one['call']} {one['tokens']}, {one['form']}"
        found.append(predicted("communication", about, sent, one["communication_us"]))
        found.append(predicted("forward", about, forward, one["time_us"]))
    return found


def targets(model: Sequence[Row], rows: Sequence[Row]) -> list[Target]:
    """What had to be shown.

    Args:
        model: rows of the model part.
        rows: predictions.
    """
    ratio = {(r["experts"], r["call"], r["tokens"], r["form"]): r["ratio"] for r in model}
    found = [
        checked(
            f"planned >= {GAIN} x as written, prefill of {GAIN_TOKENS:,} tokens",
            {
                f"experts {k[0]}": value
                for k, value in ratio.items()
                if k[1:] == (PREFILL, GAIN_TOKENS, PLANNED)
            },
            lambda value: value >= GAIN,
        ),
        checked(
            "planned >= merged by hand",
            {
                f"{k[0]} {k[1]} {k[2]}": value / ratio[(*k[:3], BY_HAND)]
                for k, value in ratio.items()
                if k[3] == PLANNED
            },
            lambda value: value >= 1,
        ),
    ]
    for part in ("links", "kernels", "communication", "forward"):
        errors = {
            r["what"]: r["error"] for r in rows if r["part"] == part and r["error"] is not None
        }
        within = f"predictions within {WITHIN:.0%}: {part}"
        found.append(checked(within, errors, lambda error: abs(error) <= WITHIN, shown=".1%"))
    return found


def checked(
    what: str, values: dict[str, float], is_met: Callable[[float], bool], shown: str = ".3f"
) -> Target:
    """A target that every one of ``values`` has to meet; those that do not are named first."""
    if not values:
        return Target(what, None, "not measured")
    missed = {name: value for name, value in values.items() if not is_met(value)}
    listed = [f"{name} {value:{shown}}" for name, value in (missed or values).items()]
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    counted = f"{len(values) - len(missed)} of {len(values)}"
    text = f"{counted}; {'missed' if missed else 'found'}: {', '.join(listed[:4])}{more}"
    return Target(what, not missed, text)
