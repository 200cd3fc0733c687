"""Faults of one rank of several: what each rank does, and what must be said of it."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from compiler import optimize_allreduce
from compiler.runtime.group_exchange import GroupExchange
from compiler.runtime.model_calls import ModelCalls
from tests.compiler.optimize.models import HIDDEN, Stack

RANKS, AT_FAULT = 4, 2
TIMEOUT_S = 1800
"""Of the process group, as PyTorch has it: no fault may wait for it."""


@dataclass
class Rank:
    """One rank of a fault.

    Attributes:
        group: all ranks.
        index: this one's number.
        culprit: that of the rank at fault.
        folder: where it leaves what became of it.
        moment: when the fault happened here, if it did.
    """

    group: dist.ProcessGroup
    index: int
    culprit: int
    folder: Path
    moment: float = 0.0

    @property
    def at_fault(self) -> bool:
        """Whether this rank is the one that does something else."""
        return self.index == self.culprit

    def fault(self) -> None:
        """Note that the fault happens now: seconds count from there."""
        self.moment = time.time()
        self.leave("left", "")

    def leave(self, how: str, text: str) -> None:
        """Write what became of this rank, as far as it can tell."""
        told = {"how": how, "text": text, "moment": self.moment, "end": time.time()}
        (self.folder / f"{self.index}.json").write_text(json.dumps(told))

    def model(self) -> Stack:
        """Return the model as it should be."""
        return Stack(self.group).eval()

    def optimized(self, model: nn.Module | None = None, **options: Any) -> Any:
        """Return the model, optimized for bytes."""
        return optimize_allreduce(model or self.model(), machine=None, **options)

    def served(self, **options: Any) -> Any:
        """Return the optimized model after its first call."""
        run = self.optimized(**options)
        run(tokens(6))
        return run


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    """Return what the model is called with."""
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


Fault = Callable[[Rank], Any]


# ---- other programs


class Shorter(Stack):
    """Lacks a layer."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        del self.layers[1]


class Raising(Stack):
    """Raises while it is captured."""

    def forward(self, x: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Raise."""
        raise ValueError("the third rank has no such expert")


def other_model(rank: Rank) -> Any:
    """Run a model that lacks a layer."""
    rank.fault()
    return rank.optimized(Shorter(rank.group) if rank.at_fault else None)(tokens(6))


def other_option(rank: Rank) -> Any:
    """Plan by another policy."""
    rank.fault()
    return rank.optimized(policy="merge" if rank.at_fault else "cost")(tokens(6))


def other_dtype(rank: Rank) -> Any:
    """Compute in double precision."""
    rank.fault()
    kind = torch.float64 if rank.at_fault else torch.float32
    return rank.optimized(rank.model().to(kind))(tokens(6).to(kind))


def one_token_against_many(rank: Rank) -> Any:
    """Make the first call with one token."""
    rank.fault()
    return rank.optimized()(tokens(1 if rank.at_fault else 16))


def other_values_first(rank: Rank) -> Any:
    """Make the first call with other values."""
    rank.fault()
    return rank.optimized()(tokens(6, seed=int(rank.at_fault)))


def other_weight(rank: Rank) -> Any:
    """Load another weight where all must be alike."""
    model = rank.model()
    if rank.at_fault:
        model.layers[0].norm.data.add_(1)
    rank.fault()
    return rank.optimized(model)(tokens(6))


def raises_in_forward(rank: Rank) -> Any:
    """Raise while the model is captured."""
    rank.fault()
    return rank.optimized(Raising(rank.group) if rank.at_fault else None)(tokens(6))


def other_number(rank: Rank) -> Any:
    """Compute with another Python number."""
    model = rank.model()
    model.scale = 2.0 if rank.at_fault else 1.0
    rank.fault()
    return rank.optimized(model)(tokens(6))


# ---- ranks that die


def killed(rank: Rank) -> None:
    """End this process as the kernel ends one that took too much memory."""
    rank.fault()
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(rank: Rank, stage: str) -> Any:
    """Die at some stage of a first call."""
    say = GroupExchange.say

    def watched(self: GroupExchange, what: str) -> None:
        say(self, what)
        if what == stage:
            killed(rank)

    if rank.at_fault:
        GroupExchange.say = watched  # type: ignore[method-assign]
    return rank.optimized()(tokens(6))


def killed_before(rank: Rank) -> Any:
    """Die before the first call."""
    run = rank.optimized()
    if rank.at_fault:
        time.sleep(1)
        killed(rank)
    return run(tokens(6))


def killed_in_a_call(rank: Rank) -> Any:
    """Die while a graph runs."""
    run = rank.served()
    if rank.at_fault:

        def run_and_die(self: ModelCalls, graph: Any, inputs: Any) -> None:
            time.sleep(1)
            killed(rank)

        ModelCalls.run = run_and_die  # type: ignore[method-assign]
    return run(tokens(6))


def killed_between_calls(rank: Rank) -> Any:
    """Die after a call."""
    run = rank.served()
    if rank.at_fault:
        time.sleep(1)
        killed(rank)
    return run(tokens(6))


def exits(rank: Rank) -> Any:
    """Exit while the others capture another kind of call."""
    run = rank.served()
    if rank.at_fault:
        time.sleep(1)
        rank.fault()
        sys.exit("out of requests")
    return run(tokens(1))  # another kind of call: all ranks meet


# ---- ranks that are elsewhere


def is_not_optimized(rank: Rank) -> Any:
    """Run the model as it was written."""
    rank.fault()
    run = rank.model() if rank.at_fault else rank.optimized()
    return run(tokens(6))


def other_order_of_kinds(rank: Rank) -> Any:
    """Make two kinds of calls in another order."""
    run = rank.optimized()
    rank.fault()
    return [run(tokens(n)) for n in ((1, 6) if rank.at_fault else (6, 1))]


def other_count_later(rank: Rank, **options: Any) -> Any:
    """Make a later call with other tokens."""
    run = rank.served(**options)
    rank.fault()
    return run(tokens(5 if rank.at_fault else 7))


def no_tokens_later(rank: Rank) -> Any:
    """Make a later call without tokens."""
    run = rank.served()
    rank.fault()
    result = run(tokens(0 if rank.at_fault else 6))
    time.sleep(30 * rank.at_fault)
    return result


def other_values_later(rank: Rank, **options: Any) -> Any:
    """Make a later call with other values."""
    run = rank.served(**options)
    rank.fault()
    return run(tokens(6, seed=int(rank.at_fault)))


def other_strides_later(rank: Rank) -> Any:
    """Make a later call with a tensor of other strides."""
    run = rank.served(debug=True)
    rank.fault()
    return run(tokens(6).t().contiguous().t() if rank.at_fault else tokens(6))


def changes_its_model(rank: Rank) -> Any:
    """Change the model alone."""
    run = rank.served()
    rank.fault()
    if rank.at_fault:
        run.scale = 0.25
    return run(tokens(6))


def raises_before_its_call(rank: Rank) -> Any:
    """Call the model as it cannot be called."""
    run = rank.served()
    rank.fault()
    return run(tokens(1), mask=None) if rank.at_fault else run(tokens(1))


def raises_in_a_call(rank: Rank) -> Any:
    """Run out of memory in the graph."""
    run = rank.served()
    rank.fault()
    if rank.at_fault:

        def full(*_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        for kinds in run.optimized.prepared:
            for variant in kinds.variants.ranges():
                variant.plan.eager.forward = full
    return run(tokens(6))


# ---- slow ranks


def is_slow(rank: Rank) -> Any:
    """Take long to plan."""
    say = GroupExchange.say

    def watched(self: GroupExchange, what: str) -> None:
        say(self, what)
        if what == "planning and proving":
            rank.fault()
            time.sleep(15)

    if rank.at_fault:
        GroupExchange.say = watched  # type: ignore[method-assign]
    return rank.optimized()(tokens(6))


def is_stopped(rank: Rank) -> Any:
    """Stop in a call, as a rank that hangs on its GPU."""
    run = rank.served()
    rank.fault()
    if rank.at_fault:
        time.sleep(1)
        rank.fault()
        os.kill(os.getpid(), signal.SIGSTOP)
    return run(tokens(6))


@dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
        run: what every rank runs.
        before: what became of it at commit a12fd84, with a group timeout of 40 s.
        timeout_s: of the process group.
        clear: what all other ranks must say, or the log of one, by the limit; "" for nothing.
        at_fault: the rank that is.
        rank_0_serves: the store is of rank 0, as without torchrun; else of another process.
    """

    run: Fault
    before: str
    clear: str
    timeout_s: float = TIMEOUT_S
    at_fault: int = AT_FAULT
    rank_0_serves: bool = False


def serve(index: int, case: Case, port: int, folder: Path) -> None:
    """Run a fault on one rank, and leave what became of it in ``folder``."""
    logging.basicConfig(format="%(created).1f %(message)s")
    errors = os.open(folder / f"{index}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(errors, 2)
    torch.set_num_threads(1)
    timeout = timedelta(seconds=case.timeout_s)
    is_server = case.rank_0_serves and index == 0
    store = dist.TCPStore("127.0.0.1", port, RANKS, is_server, timeout)
    dist.init_process_group("gloo", store=store, rank=index, world_size=RANKS, timeout=timeout)
    group = dist.group.WORLD
    assert group is not None
    rank = Rank(group, index, case.at_fault, folder)
    try:
        result = case.run(rank)
    except Exception as error:
        rank.leave("raised", f"{type(error).__name__}: {error}")
        return
    results = result if isinstance(result, list) else [result]
    rank.leave("returned", f"a sum of {sum(float(each.sum()) for each in results):.3f}")
