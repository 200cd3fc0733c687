"""Times one rank of eight of Step-3.5-Flash, and predicts the forward of all eight.

One process holds rank 0's slice with random weights under torch's fake process group: collectives
cost nothing, all else runs as in a group. Measured: compute per forward, kernels, gaps, dispatch.
Predicted: communication, from a machine file; forwards, as compute + communication, not overlapped.
Plans are those for the first machine named, at each number of tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from bench.kernel_profile import kernels
from compiler.cost import load_machine
from scripts.rank_models import (
    Call,
    Traffic,
    captured,
    config_of_size,
    decode_call,
    merged_by_hand,
    optimized,
    prefill_call,
    random_model,
)
from scripts.rank_plans import Plans, savings
from scripts.rank_published import beside_published

RANKS = 8
FORMS = WRITTEN, BY_HAND, MERGED, PLANNED = (
    "as written", "merged by hand", "optimized, merge", "planned"
)  # fmt: skip
TIMES = ("busy_us", "gaps_us", "graph_us")
MODES = {False: ("default",), True: ("default", "reduce-overhead")}
"""Of torch.compile, in prefill and in decode, whose launches count."""
MOST = "default,reduce-overhead"


class Device:
    """Where the model runs: events on CUDA, the wall clock elsewhere."""

    def __init__(self, name: str) -> None:
        self.name, self.cuda = name, name == "cuda"

    def synchronize(self) -> None:
        """Waits for what was launched."""
        if self.cuda:
            torch.cuda.synchronize()

    def times_us(self, call: Callable[[], object], repeats: int) -> tuple[float, float]:
        """Median microseconds from start to end, and until the host was free again."""
        whole, host = [], []
        for _ in range(repeats):
            self.synchronize()
            start = time.perf_counter()
            call()
            host.append((time.perf_counter() - start) * 1e6)
            self.synchronize()
            whole.append((time.perf_counter() - start) * 1e6)
        return statistics.median(whole), statistics.median(host)


def graphed(call: Callable[[], object]) -> Callable[[], object]:
    """A CUDA graph of the call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def times_of(call: Callable[[], object], device: Device, repeats: int) -> dict[str, Any]:
    """Times of one eager form at one size."""
    call()
    eager_us, host_us = device.times_us(call, repeats)
    return {"eager_us": eager_us, "host_us": host_us, **kernels(call, device.name)}


def graph_times(calls: dict[str, Callable[[], object]], device: Device, rounds: int) -> list[float]:
    """Median microseconds of replays of each call's CUDA graph.

    Calls take turns, since the device grows slower or faster over a second by more than they
    differ.
    """
    replays = [graphed(call) for call in calls.values()]
    taken = [[device.times_us(replay, 1)[0] for replay in replays] for _ in range(rounds)]
    return [statistics.median(times) for times in zip(*taken, strict=True)]


def compiled_times(
    forms: dict[str, Any], mode: str, call: Call, device: Device, rounds: int
) -> dict[str, dict[str, Any]]:
    """Times of forms under ``torch.compile``; they take turns, as in ``graph_times``."""
    torch._dynamo.reset()
    by_form, runs = dict[str, dict[str, Any]](), dict[str, Callable[[], object]]()
    for name, form in forms.items():
        runs[name] = caller(torch.compile(form, mode=mode, dynamic=False), call)
        start = time.perf_counter()
        for _ in range(3):
            runs[name]()
        device.synchronize()
        by_form[name] = {"compile_s": time.perf_counter() - start}
    taken = [[device.times_us(run, 1)[0] for run in runs.values()] for _ in range(rounds)]
    for (name, run), times in zip(runs.items(), zip(*taken, strict=True), strict=True):
        seen = kernels(run, device.name)
        by_form[name] |= {"us": statistics.median(times), "kernels": seen.get("kernels")}
        by_form[name]["busy_us"] = seen.get("busy_us")
    return by_form


def caller(form: Any, call: Call) -> Callable[[], object]:
    """The call of one form, without gradients."""

    def run() -> object:
        with torch.no_grad():
            return form(*call[0], **call[1])

    return run


def time_forms(
    model: Any,
    calls: dict[int, Call],
    device: Device,
    arguments: argparse.Namespace,
    *,
    decode: bool,
) -> list[dict[str, Any]]:
    """All forms of the model at all sizes of one kind of call, captured once."""
    capture = captured(model, calls[max(calls)])
    told(f"captured in {capture.seconds:.1f} s")
    by_hand = merged_by_hand(model)
    merged, traffic, verdict = optimized(model, capture.capture, "merge")
    plans, rows = (
        Plans(model, capture.capture, arguments.machines.split(",")[0]),
        list[dict[str, Any]](),
    )
    for tokens, call in calls.items():
        plan, (before, after) = plans.at(tokens), traffic(tokens)
        forms: dict[str, tuple[Any, Traffic, str]] = {
            WRITTEN: (model, before, ""), BY_HAND: (by_hand, after, ""),
            MERGED: (merged, after, verdict), PLANNED: (plan.module, plan.traffic, plan.verdict),
        }  # fmt: skip
        here = []
        for name, (form, sent, proven) in forms.items():
            measured = times_of(caller(form, call), device, arguments.repeats)
            facts = {"form": name, "tokens": tokens, "decode": decode, "verdict": proven}
            here.append({**facts, "collectives": sent, **measured})
            if name in (MERGED, PLANNED):
                begin = lambda: form._begun(*call)  # noqa: B023, E731
                here[-1]["dispatch_us"] = device.times_us(begin, 50)[1]
            if name == PLANNED:
                here[-1]["savings_us"] = savings(plan.spent)
            told(f"{tokens} tokens, {name}: {floats(here[-1])}")
        if decode and device.cuda:
            runs = {name: caller(form, call) for name, (form, *_) in forms.items()}
            for r, graph_us in zip(here, graph_times(runs, device, arguments.rounds), strict=True):
                r["graph_us"] = graph_us
            told(f"{tokens} tokens, CUDA graphs: {[round(r['graph_us']) for r in here]}")
        # the planned form's stand-ins for collectives do not compile
        ours = {name: form for name, (form, *_) in forms.items() if name in arguments.compiled}
        for mode in filter(arguments.compile.__contains__, MODES[decode]):
            by_form = compiled_times(ours, mode, call, device, arguments.rounds)
            told(f"{tokens} tokens, {mode}: {by_form}")
            for r in here:
                r |= {mode: by_form[r["form"]]} if r["form"] in by_form else {}
        rows += here
    return rows


def floats(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a row, rounded."""
    return {k: round(x, 1) for k, x in row.items() if isinstance(x, int | float)}


def predicted(measured: dict[str, Any], machine: str) -> dict[str, float]:
    """Communication and forward of eight ranks, in microseconds."""
    launch = "graph" if "graph_us" in measured else "eager"
    prices, traffic = load_machine(machine), measured["collectives"]
    group = [list(range(RANKS))]
    sent = sum(prices.collective_time_ps(k, b, group, launch=launch) for k, b in traffic) / 1e6
    forward = compute_us(measured) + sent
    return {"sent_us": sent, "forward_us": forward, "tokens_s": measured["tokens"] / forward * 1e6}


def table_of(title: str, *columns: str) -> Table:
    """A table with the call, the tokens and the form before other columns."""
    table = Table(title=title, title_justify="left")
    for column in ("call", "tokens", "form", *columns):
        table.add_column(column, justify="right")
    return table


def head(row: dict[str, Any]) -> tuple[str, str, str]:
    """The first cells of a row."""
    return "decode" if row["decode"] else "prefill", f"{row['tokens']:,}", row["form"]


def ms(row: dict[str, Any], key: str) -> str:
    """Microseconds as milliseconds, if they are there."""
    return "" if row.get(key) is None else f"{row[key] / 1e3:.2f}"


def show(rows: list[dict[str, Any]], console: Console, machines: list[str]) -> None:
    """What was measured, then what follows from it."""
    console.print(measured_table(rows))
    if any(mode in r for r in rows for mode in MODES[True]):
        console.print(compiled_table(rows))
    for machine in machines:
        console.print(predicted_table(rows, machine, machines[0]))
    console.print(savings_table(rows, machines[0]))
    for line in beside_published(rows, "h200x8") if "h200x8" in machines else ():
        console.print(line, highlight=False, soft_wrap=True)


def beside(rows: list[dict[str, Any]], row: dict[str, Any], form: str) -> dict[str, Any]:
    """The row of another form for the same call."""
    same = ((r["decode"], r["tokens"], r["form"]) for r in rows)
    return rows[list(same).index((row["decode"], row["tokens"], form))]


def compute_us(row: dict[str, Any]) -> float:
    """What a call computes: in a graph where there is one, else while some kernel runs.

    Prompts are long enough for launches to run ahead of the device: kernels count, not gaps.
    """
    return float(next(row[k] for k in ("graph_us", "busy_us", "eager_us") if k in row))


def measured_table(rows: list[dict[str, Any]]) -> Table:
    """Times on this device."""
    table = table_of(
        "MEASURED on this device: one rank, collectives free",
        "eager ms", "kernels", "busy ms", "gaps ms", "CUDA graph ms", "dispatch us", "to by hand",
    )  # fmt: skip
    for r in rows:
        table.add_row(
            *head(r), ms(r, "eager_us"), str(r.get("kernels", "")), *(ms(r, k) for k in TIMES),
            f"{r['dispatch_us']:.0f}" if "dispatch_us" in r else "",
            f"{compute_us(r) / compute_us(beside(rows, r, BY_HAND)):.3f}",
        )  # fmt: skip
    return table


def compiled_table(rows: list[dict[str, Any]]) -> Table:
    """Times on this device under ``torch.compile``."""
    columns = ("mode", "ms", "kernels", "busy ms", "compile s", "to by hand")
    table = table_of("MEASURED under torch.compile", *columns)
    for r in rows:
        for mode in MODES[True]:
            if (times := r.get(mode)) is not None:
                ratio = times["us"] / beside(rows, r, BY_HAND)[mode]["us"]
                table.add_row(
                    *head(r), mode, ms(times, "us"), str(times["kernels"] or ""),
                    ms(times, "busy_us"), f"{times['compile_s']:.0f}", f"{ratio:.3f}",
                )  # fmt: skip
    return table


def predicted_table(rows: list[dict[str, Any]], machine: str, planned_for: str) -> Table:
    """Forwards of all ranks."""
    table = table_of(
        f"PREDICTED for {machine}: compute measured here + communication of its file; planned for "
        f"{planned_for}", "collectives", "comm ms", "forward ms", "tokens/s", "gain",
    )  # fmt: skip
    for r in rows:
        times, first = (x["predicted"][machine] for x in (r, beside(rows, r, WRITTEN)))
        table.add_row(
            *head(r), str(len(r["collectives"])), ms(times, "sent_us"), ms(times, "forward_us"),
            f"{times['tokens_s']:,.0f}", f"{first['forward_us'] / times['forward_us'] - 1:.1%}",
        )  # fmt: skip
    return table


def savings_table(rows: list[dict[str, Any]], machine: str) -> Table:
    """What the plans save, by part of the forward."""
    planned = [r for r in rows if r["form"] == PLANNED]
    title = f"PREDICTED for {machine}, compute by its file too: ms saved, one kernel per op"
    table = Table(title=title, title_justify="left")
    for column in ("call", "tokens", *planned[0]["savings_us"], "compute saved, measured"):
        table.add_column(column, justify="right")
    for r in planned:
        saved = compute_us(beside(rows, r, MERGED)) - compute_us(r)
        listed = (*r["savings_us"].values(), saved)
        table.add_row(*head(r)[:2], *(f"{us / 1e3:.2f}" for us in listed))
    return table


def finish(rows: list[dict[str, Any]], arguments: argparse.Namespace, layers: int) -> None:
    """Predicts, prints and writes."""
    machines = arguments.machines.split(",")
    for r in rows:
        r["predicted"] = {name: predicted(r, name) for name in machines}
    show(rows, Console(width=160), machines)
    if arguments.output:
        cuda = arguments.device == "cuda"
        facts = {
            "torch": torch.__version__,
            "layers": layers,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
        }
        listed = [{**r, "collectives": len(r["collectives"])} for r in rows]
        arguments.output.write_text(json.dumps({**facts, "rows": listed}, indent=1))


def told(what: str) -> None:
    """Progress, on standard error."""
    print(f"[{time.perf_counter() - START:6.1f} s] {what}", file=sys.stderr, flush=True)


START = time.perf_counter()


def integers(text: str) -> list[int]:
    """Numbers between commas."""
    return [int(x) for x in text.split(",") if x]


def main() -> int:
    """Prints tables on standard output and JSON to ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, help="decoder layers; default: all 45, 5 on cpu")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a tiny model")
    parser.add_argument("--prefill", type=integers, default=[2048, 8192, 16384], help="tokens")
    parser.add_argument("--decode", type=integers, default=[1, 64, 256], help="batch sizes")
    parser.add_argument("--context", type=int, default=1024, help="tokens in the cache")
    parser.add_argument("--repeats", type=int, default=5, help="of each eager call")
    parser.add_argument("--rounds", type=int, default=20, help="of CUDA graphs and compiled forms")
    parser.add_argument(
        "--compile", nargs="?", const=MOST, default="", metavar="MODES",
        help=f"torch.compile too; default: {MOST}",
    )  # fmt: skip
    parser.add_argument(
        "--compile-written", action="store_true", help="the model as written too: takes minutes"
    )
    parser.add_argument("--machines", default="h200x8,h100x8", help="to predict for")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    arguments.compile = arguments.compile.split(",")
    arguments.compiled = (WRITTEN,) * arguments.compile_written + (BY_HAND, MERGED)
    warnings.simplefilter("ignore")
    device, rows = Device(arguments.device), list[dict[str, Any]]()
    dist.init_process_group("fake", rank=0, world_size=RANKS)
    config = config_of_size(arguments.layers, small=not device.cuda)
    with torch.no_grad():
        model = random_model(config, arguments.device, torch.bfloat16)
    told("weights made")
    vocab = config.vocab_size
    if arguments.prefill:
        prompts = {n: prefill_call(n, vocab, arguments.device) for n in arguments.prefill}
        rows += time_forms(model, prompts, device, arguments, decode=False)
    batches = [[n for n in arguments.decode if n > 1], [n for n in arguments.decode if n == 1]]
    for sizes in filter(None, batches):  # a batch of one is a graph of its own
        steps = {n: decode_call(model, n, arguments.context, arguments.device) for n in sizes}
        rows += time_forms(model, steps, device, arguments, decode=True)
    finish(rows, arguments, config.num_hidden_layers)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
