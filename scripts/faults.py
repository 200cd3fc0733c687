"""Four gloo ranks of which one is at fault: who notices, after how many seconds, and what is said.

A rank runs another program, dies at some stage, comes late, or stops. Every fault runs in processes
of its own; ranks that are left after the limit are stuck, and are ended. The table goes to standard
output, what every rank reported to standard error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch.distributed as dist

from scripts import rank_faults as faults
from scripts.rank_faults import RANKS, Case, serve

CLOSED = 'gloo\'s "Connection closed by peer", no rank, no stage'
NOT_RUN = "not run"
LIMIT_S = 180.0
"""How long the other ranks may run: a machine may be busy."""
PAUSE_S = 5.0
QUOTED = 150
"""Characters of a report that the table shows."""
CASES: Mapping[str, Case] = {
    "other model": Case(faults.other_model, "DivergenceError", "do not run the same program"),
    "other option": Case(
        faults.other_option, "PlanError", "policy is 'cost' on rank 0, 'merge' on rank 2"
    ),
    "other dtype at the first call": Case(
        faults.other_dtype, "DivergenceError, generic remedy", "rank 2: a first call with x float64"
    ),
    "1 token against 16 at the first call": Case(
        faults.one_token_against_many,
        "DivergenceError, generic remedy",
        "rank 2: a first call with x float32[1, n]",
    ),
    "other values at the first call": Case(
        faults.other_values_first, "PlacementError", "rank 2 differs from the others"
    ),
    "replicated weight differs": Case(faults.other_weight, "PlacementError", "layers.0.norm"),
    "forward raises on one rank": Case(
        faults.raises_in_forward, "all: capture failed on rank 2", "capture failed on rank 2"
    ),
    "a Python number differs": Case(faults.other_number, "a constant of the rank", ""),
    "killed before its first call": Case(
        faults.killed_before, NOT_RUN, "has ended; last seen before its first call"
    ),
    "killed while capturing": Case(
        partial(faults.killed_at, stage="capturing"),
        CLOSED + ", after 10 to 16 s",
        "has ended; last seen capturing",
    ),
    "killed while planning": Case(
        partial(faults.killed_at, stage="planning and proving"),
        NOT_RUN,
        "has ended; last seen planning and proving",
    ),
    "killed while lowering": Case(
        partial(faults.killed_at, stage="lowering"), NOT_RUN, "has ended; last seen lowering"
    ),
    "killed in a call": Case(
        faults.killed_in_a_call, CLOSED, "has ended; last seen running call 2 of Stack"
    ),
    "killed between calls": Case(
        faults.killed_between_calls, NOT_RUN, "has ended; last seen after call 1 of Stack"
    ),
    "exits while others capture": Case(
        faults.exits, NOT_RUN, "exits; last seen after call 1 of Stack"
    ),
    "runs the plain model": Case(
        faults.is_not_optimized,
        "40.5 s: the group's timeout; others: closed by peer",
        "rank 2: it has not called optimize_allreduce",
        timeout_s=60,
    ),
    "kinds of calls in another order": Case(
        faults.other_order_of_kinds,
        '66 s: the timeout, "Timed out waiting 40000ms for recv"',
        "rank 2: a first call with x float32[1, n]",
    ),
    "other token count later": Case(
        faults.other_count_later, "gloo aborts one rank; others: closed by peer", "has ended"
    ),
    "other token count later, checked": Case(
        partial(faults.other_count_later, debug=True), "no such mode", "call 2, x"
    ),
    "no tokens later": Case(
        faults.no_tokens_later, "others wait until it exits", "after call 2 of Stack"
    ),
    "other values later": Case(faults.other_values_later, "silent: results differ", ""),
    "other values later, checked": Case(
        partial(faults.other_values_later, debug=True),
        "no such mode",
        "rank 2 differs from the others",
    ),
    "other strides later, checked": Case(
        faults.other_strides_later, "no such mode", "strides (1, 6)"
    ),
    "one rank changes its model": Case(
        faults.changes_its_model, NOT_RUN, "scale changed from 0.5 to 0.25"
    ),
    "one rank raises before its call": Case(
        faults.raises_before_its_call, NOT_RUN, "got an unexpected keyword argument 'mask'"
    ),
    "one rank raises in its call": Case(faults.raises_in_a_call, NOT_RUN, "out of memory"),
    "rank 0 killed, which serves the store": Case(
        faults.killed_before, NOT_RUN, "has ended", at_fault=0, rank_0_serves=True
    ),
    "slow: 15 s in planning": Case(faults.is_slow, NOT_RUN, "planning and proving"),
    "stopped in a call, NCCL-like": Case(faults.is_stopped, NOT_RUN, "is stopped", timeout_s=20),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one rank.

    Attributes:
        how: returned, raised, killed or aborted by a signal, or stuck.
        text: the error, or the sum of the result.
        log: what it wrote to standard error.
        moment: when the fault happened there; 0 if never.
        end: when it returned or raised.
    """

    how: str
    text: str
    log: str
    moment: float
    end: float

    def noticed(self, clear: str) -> float:
        """When the rank first said ``clear``, in its log or its error; 0 if it never did."""
        lines = (line.split(maxsplit=1) for line in self.log.splitlines() if clear in line)
        logged = [float(first) for first, *_ in lines if first.replace(".", "").isdigit()]
        return min([*logged, *([self.end] if clear in self.text else [])], default=0.0)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        fault: its name.
        before: what became of it once.
        now: what becomes of it now, in words.
        seconds: from the fault until the last of the others said so, or was through.
        is_clear: whether it is what must be said.
        ranks: what became of each rank.
    """

    fault: str
    before: str
    now: str
    seconds: float
    is_clear: bool
    ranks: Sequence[Outcome] = field(repr=False)


def outcomes(name: str) -> list[Outcome]:
    """Run a fault on all ranks; by rank, what became of it."""
    case = CASES[name]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "scripts.rank_faults"])
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    port = store.port
    if case.rank_0_serves:
        del store
    with tempfile.TemporaryDirectory(prefix="faults-") as path:
        folder = Path(path)
        ranks = [context.Process(target=serve, args=(i, case, port, folder)) for i in range(RANKS)]
        for process in ranks:
            process.start()
        last = time.monotonic() + LIMIT_S
        for process in (p for i, p in enumerate(ranks) if i != case.at_fault):
            process.join(max(0.0, last - time.monotonic()))
        ranks[case.at_fault].join(PAUSE_S)  # it may be stopped
        stuck = [process.is_alive() for process in ranks]
        for process in ranks:
            process.kill()
            process.join()
        return [_outcome(folder, i, process.exitcode, stuck[i]) for i, process in enumerate(ranks)]


def _outcome(folder: Path, index: int, code: int | None, is_stuck: bool) -> Outcome:
    path = folder / f"{index}.json"
    told = json.loads(path.read_text()) if path.exists() else {"how": "left", "text": ""}
    how = told["how"]
    if how == "left" and is_stuck:
        how = "stuck"
    elif how == "left":
        how = signal.Signals(-code).name if code and code < 0 else f"exited with {code}"
    log = (folder / f"{index}.log").read_text()
    return Outcome(how, told["text"], log, told.get("moment", 0.0), told.get("end", 0.0))


def row(name: str) -> Row:
    """Run a fault, and say what became of it."""
    case, ranks = CASES[name], outcomes(name)
    others = [rank for i, rank in enumerate(ranks) if i != case.at_fault]
    moment = ranks[case.at_fault].moment or max(rank.moment for rank in others)
    moments = [rank.noticed(case.clear) for rank in others]
    seconds = max((noticed for noticed in moments if noticed), default=0.0) - moment
    is_clear = not case.clear or all(moments)
    return Row(name, case.before, _summary(ranks, case), round(seconds, 1), is_clear, ranks)


def _summary(ranks: Sequence[Outcome], case: Case) -> str:
    """What became of the ranks, in one line: how they ended, and what the others said."""
    groups: dict[str, list[int]] = {}
    for i, rank in enumerate(ranks):
        kind = rank.text.split(":")[0] if rank.how == "raised" else rank.how
        groups.setdefault(kind, []).append(i)
    ends = "; ".join(f"{', '.join(map(str, who))}: {how}" for how, who in groups.items())
    lines = (line for rank in ranks for line in f"{rank.text}\n{rank.log}".splitlines())
    quoted = next((line for line in lines if case.clear and case.clear in line), "")
    quoted = re.sub(r"^[\d.]+ ", "", re.sub(r"process \d+", "process N", quoted.strip()))
    quoted = quoted if len(quoted) <= QUOTED else f"{quoted[:QUOTED]} …"
    return f"{ends}. {quoted}" if quoted else ends


def main() -> int:
    """Print the table; return 1 where a fault is not reported as it must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="some of them; all")
    parser.add_argument("--list", action="store_true", help="name the faults, and run nothing")
    parser.add_argument("--json", type=Path, help="write everything that ranks reported here")
    options = parser.parse_args()
    if unknown := [name for name in options.faults if name not in CASES]:
        parser.error(f"no such fault: {unknown[0]!r}")
    names = options.faults or list(CASES)
    if options.list:
        print("\n".join(CASES))
        return 0
    print("| fault | before | now | seconds |\n| --- | --- | --- | --- |")
    rows = []
    for name in names:
        rows.append(one := row(name))
        mark = "" if one.is_clear else " **UNCLEAR**"
        print(f"| {one.fault} | {one.before} | {one.now}{mark} | {one.seconds:g} |", flush=True)
        for i, rank in enumerate(one.ranks):
            print(f"{name}, rank {i}: {rank.how} {rank.text}\n{rank.log}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in rows], indent=1))
    return int(any(not one.is_clear for one in rows))


if __name__ == "__main__":
    sys.exit(main())
