"""Kernels of one call, the time they take, and the part of it that is communication."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Span = tuple[float, float]
COMMUNICATION = ("nccl", "one_shot", "two_shot", "all_gather")
"""How the names of kernels that communicate begin: NCCL's, and those of this package."""
GLOO = "gloo:"


def covered_us(spans: Iterable[Span]) -> float:
    """Time that at least one of the spans (start, end) covers."""
    busy, until = 0.0, 0.0
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def kernels(call: Callable[[], object], device: str) -> dict[str, float]:
    """Kernels of one call on "cuda", their time, and the time between them, in microseconds.

    ``communication_us`` is what collectives take: fused kernels count whole, and a collective
    lasts from its start until the slowest rank is done with it. Without CUDA it is known from the
    names that gloo gives its work, beside ``call_us``, what the profiled call took.
    """
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as seen:
        start = time.perf_counter()
        call()
        call_us = (time.perf_counter() - start) * 1e6
        if device == "cuda":
            torch.cuda.synchronize()
    events = seen.events() or ()
    gloo = [span_of(e) for e in events if e.name.startswith(GLOO)]
    if device != "cuda":
        return {"communication_us": covered_us(gloo), "call_us": call_us}
    ran = [e for e in events if e.device_type.name == "CUDA" and not e.is_user_annotation]
    spans = [span_of(e) for e in ran]
    sent = [span_of(e) for e in ran if e.name.startswith(COMMUNICATION)]
    busy = covered_us(spans)
    whole = max((end for _, end in spans), default=0.0) - min((s for s, _ in spans), default=0.0)
    return {
        "kernels": len(spans),
        "busy_us": busy,
        "gaps_us": whole - busy,
        "communication_us": covered_us([*sent, *gloo]),
    }


def span_of(event: Any) -> Span:
    """Start and end of a profiled event, in microseconds."""
    return event.time_range.start, event.time_range.end
