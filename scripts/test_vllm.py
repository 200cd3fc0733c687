"""vLLM's own engine on two ranks of a CPU, as it is and with commplan's graphs: is it the same?

Each model is served twice, each time by an engine of its own, with random weights that differ
between ranks as those of its layers do. Compared are tokens, and the hidden states of every call
of the model on every rank; counted are the collectives as they run. Exits with 1 if they differ,
if a graph is not planned or not proved, or if nothing was to be compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from scripts.vllm_engine import MODELS, REAL, STEP3P5

TOLERANCE = 0.02
"""Of hidden states in bfloat16: the largest difference over their root mean square."""
LEAST_STATE = 0.1
"""Root mean square of hidden states under which a comparison says nothing."""
RANKS = 2
KINDS = ("all_reduce", "reduce_scatter", "all_gather")

console = Console()


def served(model: str, backend: str, seed: int, folder: Path) -> dict[str, Any]:
    """Serve a model in a process of its own; return what came out, hidden states by rank."""
    folder.mkdir()
    log = folder / "log"
    command = [sys.executable, "-m", "scripts.vllm_engine", model, backend, str(seed), str(folder)]
    with log.open("w") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if code.returncode:
        lines = [line for line in log.read_text().splitlines() if "Error" in line]
        raise SystemExit(f"{model}, {backend}: the engine failed: {lines[-1:] or log.read_text()}")
    result: dict[str, Any] = json.loads(folder.joinpath("served.json").read_text())
    result["ranks"] = [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]
    return result


def wrong(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], float, int]:
    """Return what is wrong, the largest relative difference of hidden states, and calls."""
    problems, worst, calls = [], 0.0, 0
    if [x["tokens"] for x in before["served"]] != [x["tokens"] for x in after["served"]]:
        problems.append("other tokens")
    for old, new in zip(before["ranks"], after["ranks"], strict=True):
        if [x.shape for x in old["states"]] != [x.shape for x in new["states"]]:
            problems.append("other calls of the model")
            continue
        for x, y in zip(old["states"], new["states"], strict=True):
            scale = x.square().mean().sqrt().item()
            if not scale > LEAST_STATE:
                problems.append(f"hidden states near zero: {scale}")
            worst, calls = max(worst, (x - y).abs().max().item() / scale), calls + 1
    if worst > TOLERANCE:
        problems.append(f"hidden states differ by {worst:.3g}")
    for rank, plans in enumerate(after["plans"]):
        verdicts = [(plan["outcome"], plan["verdict"], plan["reason"]) for plan in plans]
        if [x[:2] for x in verdicts] != [("optimized", "EQUIVALENT")]:
            problems.append(f"rank {rank}: {verdicts}")
    return problems, worst, calls


def ran(result: dict[str, Any], rows: int) -> str:
    """Return the collectives of the calls of so many rows that ran on rank 0."""
    rank = result["ranks"][0]
    pairs = zip(rank["states"], rank["counts"], strict=True)
    counts = {tuple(c.get(kind, 0) for kind in KINDS) for x, c in pairs if len(x) == rows}
    return ", ".join(" + ".join(map(str, each)) for each in sorted(counts)) or "-"


def plan_at_real_size() -> int:
    """Print what is planned for five layers of Step-3.5-Flash on eight H200."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(STEP3P5 | REAL))
        command = ["plan", f"vllm:{folder}", "--tp", "8", "--machine", "h200x8"]
        return subprocess.call([sys.executable, "-m", "compiler", *command])


def main() -> int:
    """Serve, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, prog="scripts/test_vllm")
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; all if left out")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    arguments = parser.parse_args()
    models = arguments.models or list(MODELS)
    if unknown := set(models) - set(MODELS):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    table = Table("model", "rows", "before", "after", title=" + ".join(KINDS))
    failed = 0
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            before = served(model, "eager", arguments.seed, Path(folder, "before"))
            after = served(model, "commplan_vllm", arguments.seed, Path(folder, "after"))
        problems, worst, calls = wrong(before, after)
        failed += bool(problems)
        for plan in after["plans"][0]:
            console.print(plan["text"], markup=False)
        for rows in sorted({len(x) for x in before["ranks"][0]["states"]}, reverse=True):
            table.add_row(model, str(rows), ran(before, rows), ran(after, rows))
        tokens = sum(len(x["tokens"]) for x in before["served"])
        console.print(f"{model}: {tokens} tokens, {calls} calls, largest difference {worst:.2g}")
        console.print(f"{model}: {'; '.join(dict.fromkeys(problems)) or 'the same'}")
    console.print(table)
    return plan_at_real_size() or int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
