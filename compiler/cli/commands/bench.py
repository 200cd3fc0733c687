"""``commplan bench``: a model timed as written, merged and planned, on the ranks that run it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from bench.forms import PLANNED, WRITTEN, Measured, MeasuredForm, measured_forms
from bench.ranks import joined
from compiler.cli.inputs.load_model import built, factory_of
from compiler.cli.inputs.options import InputOptions, settings
from compiler.cli.render.collectives import bytes_text
from compiler.cli.render.document import Block, Document
from compiler.cli.render.progress import Stages, new_table, number_column


def bench(
    model: str, options: InputOptions, *, machine: str, launch: str, rounds: int, format: str
) -> int:
    """Time a model in turns, and print what was measured, on the first rank."""
    factory = factory_of(model, settings(options.settings))
    with ExitStack() as stack:
        stack.enter_context(joined("commplan bench"))
        first = os.environ["RANK"] == "0"
        tell = stack.enter_context(Stages().stage("bench", model)) if first else lambda _: None
        module, call = built(model, factory)
        measured = measured_forms(
            module, call, machine=machine, launch=launch, rounds=rounds, tell=tell
        )
    if first:
        Document("bench/1", bench_json(model, measured), list(blocks(model, measured))).print(
            format
        )
    return 0


def bench_json(model: str, measured: Measured) -> dict[str, Any]:
    """Return what was measured as JSON values, times in microseconds."""
    forms = [asdict(form) | {"median_us": form.median_us} for form in measured.forms]
    return {"model": model} | asdict(measured) | {"forms": forms}


def blocks(model: str, measured: Measured) -> Iterator[Block]:
    """Yield a heading, a row per form, and the answer."""
    tokens = "" if measured.tokens is None else f"  {measured.tokens} tokens"
    machine = f"  machine {measured.machine}" if measured.machine else ""
    yield f"{model}  {measured.ranks} x {measured.device}  {measured.launch}{tokens}{machine}"
    headings = ("ms", "quartiles", "times as fast", "predicted ms")
    times = new_table("", *map(number_column, headings), caption=_turns(measured))
    sent = new_table("", "collectives of a call", *map(number_column, ("payload", "of the time")))
    for form in measured.forms:
        low, high = (f"{us / 1e3:.3f}" for us in _quartiles(form.rounds_us))
        predicted = "" if form.predicted_us is None else f"{form.predicted_us / 1e3:.3f}"
        faster = f"{statistics.median(form.speedup):.3f}"
        times.add_row(form.name, f"{form.median_us / 1e3:.3f}", f"{low}-{high}", faster, predicted)
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(form.collectives.items())) or "none"
        fused = f", {form.fused} of them fused" if form.fused else ""
        share = f"{form.communication_share:.0%}"
        sent.add_row(form.name, kinds + fused, bytes_text(form.payload_bytes), share)
    yield times
    yield sent
    yield from (answer(form) for form in measured.forms if form.name != WRITTEN)
    yield from (f"note: {note}" for note in measured.notes)


def _turns(measured: Measured) -> str:
    rounds = len(measured.forms[0].rounds_us)
    return f"{rounds} rounds; in each, {measured.calls} calls of every form, one after the other"


def answer(form: MeasuredForm) -> str:
    """Return whether a form is faster than the model as written, as far as the rounds tell."""
    low, high = _quartiles(form.speedup)
    verdict = "faster" if low > 1 else "slower" if high < 1 else "neither faster nor slower"
    text = (
        f"{form.name}: {verdict}: in the middle half of the rounds {low:.3f} to {high:.3f} times "
    )
    text += f"as fast; {form.verdict}, outputs differ by {form.difference:.1e}"
    if form.name == PLANNED and form.predicted_us is not None:
        text += f"; measured is {form.median_us / form.predicted_us:.2f} of what was predicted"
    return text


def _quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
