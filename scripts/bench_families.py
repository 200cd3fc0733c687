"""Models that people have, behind the doors of the optimizer, on gloo ranks: one table.

Families of transformers as ``from_pretrained(folder, tp_plan="auto")`` loads them, unmodified;
with ``--plans`` a decoder sharded by ``parallelize_module``; with ``--peft`` models with LoRA.
Each runs eagerly and behind every door: all_reduces are counted as they run, logits and generated
tokens compared. Exits with 1 if tokens or logits are wrong, or a door fails or falls back.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from scripts.doors import CACHES, DOORS, DTYPES, GENERATED, Outcome, run
from tests.families.families import FAMILIES
from tests.families.plans import PLANS
from tests.support.gloo import GlooPool, RankError

COLUMNS = (
    "model", "ranks", "door", "all_reduces a call", *(f"of {c} generate" for c in CACHES),
    "logits fp32", "bf16", "tokens", "first result, s (CPU)", "eager, s", "graphs", "verdicts",
)  # fmt: skip
TOLERANCES = {"fp32": 5e-5, "bf16": 0.1}
"""Largest difference of logits to eager ones, over their root mean square."""
TIMEOUT_S = 900
"""Of one model behind one door."""
ADAPTED = ("Llama", "Cohere2", "GLM4-MoE")

console = Console(stderr=True)


def merged(outcomes: list[Outcome]) -> Outcome:
    """Rank 0's figures; the worst difference, tokens and error of any rank."""
    first = outcomes[0]
    for call in first.differences:
        first.differences[call] = max(x.differences.get(call, 0.0) for x in outcomes)
    for cache in first.tokens:
        first.tokens[cache] = all(x.tokens.get(cache, True) for x in outcomes)
    for other in outcomes[1:]:
        first.errors = other.errors | first.errors
        first.tracebacks = other.tracebacks | first.tracebacks
    return first


def wrong(outcome: Outcome) -> bool:
    """Whether tokens or logits differ, a graph was not proved, or a call failed."""
    far = [d > TOLERANCES[call.split()[-1]] for call, d in outcome.differences.items()]
    unproved = set(outcome.verdicts) - {"EQUIVALENT", "IDENTICAL", "unchanged"}
    return bool(any(far) or not all(outcome.tokens.values()) or unproved or outcome.errors)


def rows(name: str, ranks: int, door: str, outcome: Outcome) -> list[tuple[str, ...]]:
    """A line for the outcome, and one for each distinct error."""
    seconds = outcome.seconds
    first = f"{seconds['door']:.1f} ({seconds['door cpu']:.1f})" if seconds else ""
    breaks = f", {outcome.breaks} breaks" if outcome.breaks else ""
    same = {True: "same", False: "**DIFFER**"}
    lines = [(
        name, str(ranks), door,
        _arrows(outcome, [call for call in outcome.all_reduces if call.endswith("fp32")]),
        *(_arrows(outcome, [cache]) for cache in CACHES),
        *(_worst(outcome, dtype) for dtype in TOLERANCES),
        ", ".join(dict.fromkeys(same[equal] for equal in outcome.tokens.values())),
        first, f"{seconds['eager']:.2f}" if seconds else "", f"{outcome.graphs}{breaks}",
        ", ".join(f"{outcome.verdicts.count(v)} {v}" for v in dict.fromkeys(outcome.verdicts)),
    )]  # fmt: skip
    for error in dict.fromkeys(outcome.errors.values()):
        calls = ", ".join(call for call, e in outcome.errors.items() if e == error)
        text = f"{calls}: {error}".replace("|", "\\|")
        lines.append((name, str(ranks), door, text, *[""] * (len(COLUMNS) - 4)))
    return lines


def _arrows(outcome: Outcome, calls: list[str]) -> str:
    pairs = (outcome.all_reduces[call] for call in calls if call in outcome.all_reduces)
    return ", ".join(dict.fromkeys(f"{before} → {after}" for before, after in pairs))


def _worst(outcome: Outcome, dtype: str) -> str:
    differences = [d for call, d in outcome.differences.items() if call.endswith(dtype)]
    return f"{max(differences):.1e}" if differences else ""


def subjects(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Kind and name of each model to run."""
    if arguments.plans or arguments.peft:
        plans = [("plan", name) for name in PLANS] if arguments.plans else []
        return plans + [("peft", name) for name in arguments.families or ADAPTED if arguments.peft]
    return [("family", name) for name in arguments.families or FAMILIES]


def measured(
    kind: str,
    name: str,
    door: str,
    folder: str,
    pool: GlooPool,
    dtypes: Sequence[str] = tuple(DTYPES),
    caches: Sequence[str] = CACHES,
) -> Outcome:
    """One model behind one door, on all ranks of the pool; after an error, these start anew.

    Args:
        kind: "family", "plan" or "peft".
        name: of the model.
        door: key of ``DOORS``.
        folder: of the saved models.
        pool: of as many ranks as the model is sharded over.
        dtypes: of ``DTYPES``: in which logits are computed.
        caches: of ``CACHES``: with which tokens are generated, in float32.
    """
    try:
        job = (kind, name, door, folder, dtypes, caches)
        outcome = merged(pool.run(pool.world_size, run, *job))
    except RankError as error:
        last = str(error).strip().splitlines()[-1]
        outcome = Outcome(errors={"ranks": last}, tracebacks={"ranks": str(error)})
    if outcome.errors:
        pool.stop()  # ranks that failed at different calls would no longer meet
    return outcome


def save(families: Iterable[str], folder: Path) -> None:
    """Write the checkpoints that ranks load."""
    for name in families:
        with console.status(f"saving {name}"):
            FAMILIES[name].save(folder / name)


def main() -> int:
    """Prints a Markdown table, or JSON, on standard output, line by line."""
    arguments = _arguments()
    chosen, failed = subjects(arguments), False
    if not arguments.json:
        print(f"torch {torch.__version__}, transformers {transformers.__version__}, ", end="")
        print(f"{GENERATED} tokens generated\n")
        _print_rows([COLUMNS, ("---",) * len(COLUMNS)])
    with tempfile.TemporaryDirectory(prefix="families-") as folder:
        save(dict.fromkeys(n for kind, n in chosen if kind != "plan"), Path(folder))
        for ranks in arguments.ranks:
            pool = GlooPool(ranks, TIMEOUT_S)
            for kind, name in chosen:
                if kind == "plan" and PLANS[name].fewest_ranks > ranks:
                    console.print(f"{name}: needs {PLANS[name].fewest_ranks} ranks")
                    continue
                for door in arguments.doors:
                    outcome = _shown(kind, name, door, folder, pool, brief=arguments.brief)
                    failed |= wrong(outcome)
                    if arguments.json:
                        at = {"kind": kind, "model": name, "ranks": ranks, "door": door}
                        print(json.dumps(at | asdict(outcome)), flush=True)
                    else:
                        _print_rows(rows(name, ranks, door, outcome))
            pool.stop()
    return int(failed)


def _shown(kind: str, name: str, door: str, folder: str, pool: GlooPool, *, brief: bool) -> Outcome:
    """``measured``, with progress on standard error; ``brief``: of logits in fp32 alone."""
    what: dict[str, Any] = {"dtypes": ("fp32",), "caches": ()} if brief else {}
    with console.status(f"{name} on {pool.world_size} ranks, {door}"):
        outcome = measured(kind, name, door, folder, pool, **what)
    causes = [f"\n  {call}: {error}" for call, error in outcome.errors.items()]
    state = "WRONG" if wrong(outcome) else "ok"
    console.print(f"{name} on {pool.world_size} ranks, {door}: {state}", *causes)
    return outcome


def _print_rows(lines: Iterable[Sequence[str]]) -> None:
    for line in lines:
        print(f"| {' | '.join(line)} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--ranks", default="2", help="numbers of ranks, by commas; default: 2")
    parser.add_argument(
        "--doors", default="aot_eager,optimize,compile",
        help=f"of {','.join(DOORS)}, by commas; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--plans", action="store_true", help="plans of parallelize_module instead")
    parser.add_argument(
        "--peft", action="store_true", help="with LoRA by peft, on and off, instead"
    )
    parser.add_argument("--brief", action="store_true", help="logits in fp32 alone, for seconds")
    parser.add_argument("--json", action="store_true", help="all figures, a model a line")
    arguments = parser.parse_args()
    arguments.doors, arguments.ranks = (
        arguments.doors.split(","),
        [int(n) for n in arguments.ranks.split(",")],
    )
    for names, valid in ((arguments.families, FAMILIES), (arguments.doors, DOORS)):
        if unknown := set(names) - set(valid):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(valid)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
