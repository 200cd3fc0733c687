"""Lint every model type of transformers that has a tensor-parallel plan, each in its own process.

    scripts/lint_zoo                       all types that have no row yet, on 8 made-up ranks
    scripts/lint_zoo --again llama qwen3   these, also if they have

The rows of docs/zoo.md are replaced as results come; so an interrupted run is taken up.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import re
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers

from compiler.analysis.statistics import statistics
from compiler.capture import capture_ranks, hf_models
from compiler.errors import CommPlanError
from compiler.linter import LintFacts, coverage, findings_of

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
HEAD = "| type | collectives, or why it was refused | findings | coverage | values | s |\n"
RULE = "| --- | --- | --- | --- | --- | --- |\n"
ROW = re.compile(r"^\| `(\w+)` \|.*\n", re.MULTILINE)


def types() -> list[str]:
    """Return the model types with a plan."""
    mapping = transformers.CONFIG_MAPPING
    return sorted(t for t in mapping if getattr(mapping[t], "base_model_tp_plan", None))


def row(model_type: str, ranks: int) -> tuple[str, list[str]]:
    """Return a row of the table, and the findings."""
    calls: list[Any] = []

    def model() -> torch.nn.Module:
        module, args = hf_models.load(model_type)
        calls.append((args, {}))
        return module

    started, cells, texts = time.perf_counter(), ["", "", "", ""], list[str]()
    try:
        capture = capture_ranks(model, lambda: calls[-1], ranks)
        facts = LintFacts(capture.graph)
        texts = [f"{one}\n" for one in findings_of(facts, capture.mutations)]
        counts = statistics(capture.graph.graph).counts
        listed = ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none"
        extent = coverage(facts).percent
        cells = [listed, str(len(texts)), f"{extent} %", str(len(facts.nodes))]
    except CommPlanError as error:
        cells[0] = f"refused: {error.what}" + (f" ({error.found})" if error.found else "")
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        cells[0] = f"not built: {type(error).__name__}: {line}"
    cells[0] = " ".join(cells[0].replace("|", "/").split())[:200]
    seconds = f"{time.perf_counter() - started:.0f}"
    return f"| `{model_type}` | {' | '.join(cells)} | {seconds} |\n", texts


def _send(pipe: Connection, model_type: str, ranks: int) -> None:
    pipe.send(row(model_type, ranks))


def measured(model_type: str, ranks: int, limit_s: int) -> tuple[str, list[str]]:
    """Return ``row`` of a process of its own, which is ended after ``limit_s`` seconds."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_send, args=(there, model_type, ranks))
    process.start()
    there.close()
    try:
        if here.poll(limit_s):
            return here.recv()  # type: ignore[no-any-return]
        why = f"not within {limit_s} s"
    except EOFError:
        why = "not built: its process ended"
    finally:
        process.kill()
        process.join()
    return f"| `{model_type}` | {why} | | | | {limit_s} |\n", []


def written(line: str) -> None:
    """Put a row into the page, in the place of the one of its type."""
    text = PAGE.read_text()
    rows = {match[1]: match[0] for match in ROW.finditer(text)}
    rows |= {match[1]: match[0] for match in ROW.finditer(line)}
    before, after = text.partition(RULE)[0], ROW.sub("", text.partition(RULE)[2])
    PAGE.write_text(before + RULE + "".join(rows[name] for name in sorted(rows)) + after)


def main() -> int:
    """Lint the types that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("types", nargs="*", help="model types; default: all that have a plan")
    parser.add_argument("--tp", type=int, default=8, help="number of ranks (8)")
    parser.add_argument("--again", action="store_true", help="also those that have a row")
    parser.add_argument(
        "--limit", type=int, default=240, metavar="S", help="seconds for each (240)"
    )
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    done = set() if options.again else {match[1] for match in ROW.finditer(PAGE.read_text())}
    for model_type in options.types or types():
        if model_type not in done:
            line, findings = measured(model_type, options.tp, options.limit)
            written(line)
            print(line, *findings, sep="", end="", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
