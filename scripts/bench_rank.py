"""Times one rank of eight of Step-3.5-Flash, and predicts the forward of all eight.

One process holds rank 0's slice with random weights under torch's fake process group: collectives
cost nothing, all else runs as in a group. Measured: compute per forward, kernels, gaps, dispatch.
Predicted: communication, from a machine file; forwards, as compute + communication, not overlapped.
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

from compiler.cost import load_machine
from models.step3p5 import Step3p5Config
from models.step3p5.entry import real_config
from scripts.kernel_profile import kernels
from scripts.rank_models import (
    Call,
    captured,
    decode_call,
    merged_by_hand,
    optimized,
    prefill_call,
    random_model,
)

RANKS = 8
TIMES = ("busy_us", "gaps_us", "graph_us", "compiled_us")
FORMS = ("as written", "merged by hand", "optimized, merge", "optimized, cost")
PUBLISHED = {"as written": 46_000, "merged by hand": 56_000}
"""Tokens/s of prompts of 8,192 on 8 H200, three all_reduces a layer and after their merge."""


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


def row(
    name: str, tokens: int, call: Callable[[], object], device: Device, *, repeats: int, graph: bool
) -> dict[str, Any]:
    """Times of one form at one size."""
    call()
    eager_us, host_us = device.times_us(call, repeats)
    found: dict[str, Any] = {"form": name, "tokens": tokens, "eager_us": eager_us}
    found |= {"host_us": host_us, **kernels(call, device.name)}
    if graph and device.cuda:
        found["graph_us"] = device.times_us(graphed(call), 4 * repeats)[0]
    return found


def time_forms(
    model: Any, calls: dict[int, Call], device: Device, given: argparse.Namespace, *, decode: bool
) -> list[dict[str, Any]]:
    """All forms of the model at all sizes of one kind of call, captured once."""
    found = captured(model, calls[max(calls)])
    told(f"captured in {found.seconds:.1f} s")
    forms: dict[str, tuple[Any, Any, str]] = {
        "as written": (model, None, ""),
        "merged by hand": (merged_by_hand(model), None, ""),
    }
    for policy in ("merge", "cost"):
        forms[f"optimized, {policy}"] = optimized(model, found.capture, policy)
    rows = []
    for tokens, (args, kwargs) in calls.items():
        before, after = forms["optimized, merge"][1](tokens)
        for name, (form, traffic, verdict) in forms.items():

            def call(form: Any = form, args: Any = args, kwargs: Any = kwargs) -> Any:
                with torch.no_grad():
                    return form(*args, **kwargs)

            measured = row(name, tokens, call, device, repeats=given.repeats, graph=decode)
            listed = {"as written": before, "merged by hand": after}
            sent = listed[name] if traffic is None else traffic(tokens)[1]
            measured |= {"collectives": sent, "verdict": verdict, "decode": decode}
            if traffic is not None:
                dispatch = lambda: form._begun(args, kwargs)  # noqa: B023, E731
                measured["dispatch_us"] = device.times_us(dispatch, 50)[1]
            rows.append(measured)
            if given.compile:
                torch._dynamo.reset()
                mode = "reduce-overhead" if decode and device.cuda else "default"
                start = time.perf_counter()
                compiled = torch.compile(form, mode=mode, dynamic=False)
                for _ in range(3):
                    call(compiled)
                measured["compile_s"] = time.perf_counter() - start
                measured["compiled_us"] = device.times_us(lambda: call(compiled), 20)[0]  # noqa: B023
            times = {k: round(x, 1) for k, x in measured.items() if isinstance(x, float)}
            told(f"{tokens} tokens, {name}: {times}, {measured.get('kernels', 0)} kernels")
    return rows


def predicted(measured: dict[str, Any], machine: str) -> dict[str, float]:
    """Communication and forward of eight ranks, in microseconds."""
    launch = "graph" if "graph_us" in measured else "eager"
    known, traffic = load_machine(machine), measured["collectives"]
    group = [list(range(RANKS))]
    sent = sum(known.collective_time_ps(k, b, group, launch=launch) for k, b in traffic) / 1e6
    # Prompts are long enough for launches to run ahead of the device: kernels count, not gaps.
    compute = measured.get("graph_us", measured.get("busy_us", measured["eager_us"]))
    forward = compute + sent
    return {"sent_us": sent, "forward_us": forward, "tokens_s": measured["tokens"] / forward * 1e6}


def show(rows: list[dict[str, Any]], console: Console, machines: list[str]) -> None:
    """What was measured, then what follows from it."""
    table = Table(title="MEASURED on this device: one rank, collectives free", title_justify="left")
    for column in ("call", "tokens", "form", "eager ms", "kernels", "busy ms", "gaps ms",
                   "CUDA graph ms", "compiled ms", "dispatch us", "to merged by hand"):  # fmt: skip
        table.add_column(column, justify="right")
    base = {(r["decode"], r["tokens"]): r for r in rows if r["form"] == "merged by hand"}
    for r in rows:
        by_hand = base[r["decode"], r["tokens"]]
        key = next(k for k in ("graph_us", "busy_us", "eager_us") if k in r)
        table.add_row(
            "decode" if r["decode"] else "prefill", str(r["tokens"]), r["form"],
            f"{r['eager_us'] / 1e3:.2f}", str(r.get("kernels", "")),
            *(f"{r[k] / 1e3:.2f}" if k in r else "" for k in TIMES),
            f"{r['dispatch_us']:.0f}" if "dispatch_us" in r else "", f"{r[key] / by_hand[key]:.3f}",
        )  # fmt: skip
    console.print(table)
    for machine in machines:
        title = f"PREDICTED for {machine}: compute measured here + communication of its file"
        table = Table(title=title, title_justify="left")
        for column in ("call", "tokens", "form", "collectives", "comm ms", "forward ms",
                       "tokens/s", "to written", "published"):  # fmt: skip
            table.add_column(column, justify="right")
        for r in rows:
            found, kind = r["predicted"][machine], "decode" if r["decode"] else "prefill"
            written = next(
                x for x in rows
                if (x["decode"], x["tokens"], x["form"]) == (r["decode"], r["tokens"], FORMS[0])
            )["predicted"][machine]  # fmt: skip
            shown = PUBLISHED.get(r["form"]) if (kind, r["tokens"]) == ("prefill", 8192) else None
            table.add_row(
                kind, str(r["tokens"]), r["form"], str(len(r["collectives"])),
                f"{found['sent_us'] / 1e3:.2f}", f"{found['forward_us'] / 1e3:.2f}",
                f"{found['tokens_s']:,.0f}", f"{written['forward_us'] / found['forward_us']:.3f}",
                f"{shown:,}" if shown and machine == "h200x8" else "",
            )  # fmt: skip
        console.print(table)


def finish(rows: list[dict[str, Any]], given: argparse.Namespace, layers: int) -> None:
    """Predicts, prints and writes."""
    machines = given.machines.split(",")
    for r in rows:
        r["predicted"] = {name: predicted(r, name) for name in machines}
    show(rows, Console(width=150), machines)
    if given.output:
        cuda = given.device == "cuda"
        facts = {
            "torch": torch.__version__,
            "layers": layers,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
        }
        listed = [{**r, "collectives": len(r["collectives"])} for r in rows]
        given.output.write_text(json.dumps({**facts, "rows": listed}, indent=1))


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
    parser.add_argument("--layers", type=int, help="decoder layers; default: all 45")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a tiny model")
    parser.add_argument("--prefill", type=integers, default=[2048, 8192, 16384], help="tokens")
    parser.add_argument("--decode", type=integers, default=[1, 64, 256], help="batch sizes")
    parser.add_argument("--context", type=int, default=1024, help="tokens in the cache")
    parser.add_argument("--repeats", type=int, default=5, help="of each eager call")
    parser.add_argument("--compile", action="store_true", help="torch.compile all forms too")
    parser.add_argument("--machines", default="h200x8,h100x8", help="to predict for")
    parser.add_argument("--output", type=Path, help="JSON file")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    device, rows = Device(given.device), list[dict[str, Any]]()
    dist.init_process_group("fake", rank=0, world_size=RANKS)
    config = real_config(given.layers) if device.cuda else Step3p5Config.small()
    with torch.no_grad():
        model = random_model(config, given.device, torch.bfloat16)
    told("weights made")
    vocab = config.vocab_size
    if given.prefill:
        prompts = {n: prefill_call(n, vocab, given.device) for n in given.prefill}
        rows += time_forms(model, prompts, device, given, decode=False)
    batches = [[n for n in given.decode if n > 1], [n for n in given.decode if n == 1]]
    for sizes in filter(None, batches):  # a batch of one is a graph of its own
        steps = {n: decode_call(model, n, given.context, given.device) for n in sizes}
        rows += time_forms(model, steps, device, given, decode=True)
    finish(rows, given, config.num_hidden_layers)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
