"""Capture a model of many ranks in one process, as several of them in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn

from compiler.capture import input_placements
from compiler.capture.capture import (
    Capture,
    Progress,
    assembled,
    by_export,
    described,
    traced,
    tracers,
)  # fmt: skip
from compiler.capture.digest import digests
from compiler.capture.functionalize import NotRecordedError
from compiler.capture.rank_traces import Description, Ranks, check_rows, ranks_text
from compiler.capture.record import Shared
from compiler.capture.trace import StateKind, Traced
from compiler.errors import CaptureError, DivergenceError
from compiler.garbage import collection_paused
from compiler.ir.mesh import Mesh

Inputs = Callable[[], tuple[tuple[Any, ...], Mapping[str, Any]]]
Taken = tuple[nn.Module, Traced, Description, dict[str, str]]
"""A rank's model, its trace, the description of it, and digests of the tensors of its code."""


@collection_paused()
def capture_ranks(
    factory: Callable[[], nn.Module],
    make_inputs: Inputs,
    world_size: int,
    *,
    mesh: Mesh | None = None,
    inputs: input_placements.Given | None = None,
    progress: Progress | None = None,
    capture: str = "auto",
) -> Capture:
    """Capture a model of ``world_size`` ranks in this process alone.

    The model is built under a fake process group as the first rank and as the last. Numbers that
    differ are taken to be ``a + b * rank``; where that is not an integer, every rank is captured.
    The checker's proof holds for any numbers in their place, so a wrong guess cannot make it wrong.
    Tensors made by the model's code are compared; parameters and persistent buffers are not, since
    what a factory puts there says nothing about a checkpoint.

    Args:
        factory: builds the model as it is on this rank of the default process group.
        make_inputs: builds ``(args, kwargs)``.
        world_size: number of ranks.
        mesh: as in ``capture``.
        inputs: as in ``capture``.
        progress: as in ``capture``.
        capture: as in ``capture``; all ranks are traced alike.

    Returns:
        The capture as rank 0 has it.

    Raises:
        CommPlanError: as in ``capture``; or a process group is initialized already.
    """
    if dist.is_initialized():
        raise CaptureError(
            "capture_ranks must run without a process group: it makes its own",
            found=f"a process group of backend {dist.get_backend()!r} is initialized",
            remedy="use capture() with an exchange, or destroy the process group first",
        )
    started, tell = time.perf_counter(), progress or (lambda _: None)
    why = ""

    def trace(method: str, rank: int, shared: Shared) -> Taken:
        tell(f"tracing the model as rank {rank} of {world_size}")
        with fake_process_group(rank, world_size):
            model = factory()
            args, kwargs = make_inputs()
            one = traced(model, args, kwargs, method, shared, mesh)
            return model, one, described(one, mesh), _digests_of_code(one)

    for method in tracers(capture):
        try:
            taken, where = _take(partial(trace, method), world_size, shares=method == "record")
            break
        except NotRecordedError as error:
            why = by_export(capture, str(error))
    model, first, *_ = taken[0]
    compared = _everywhere({rank: digests for rank, (*_, digests) in taken.items()}, world_size)
    result = assembled(model, first, where, mesh, inputs or {}, lambda _: compared)
    notes = [why] if why else []
    if len(taken) < world_size:
        notes.append(f"captured as {ranks_text(taken)} of {world_size}; the others are inferred")
    seconds = time.perf_counter() - started
    return replace(result, remarks=(*notes, *result.remarks), seconds=seconds)


def _take(
    trace: Callable[[int, Shared], Taken], world_size: int, *, shares: bool
) -> tuple[dict[int, Taken], Ranks]:
    """Trace as enough ranks; return the traces, and what is known of all ranks.

    With ``shares``, traces take from, and leave for, each other what is known of ops. The guards of
    an earlier trace make sizes known to a later one, which may then leave out an op: ranks that
    share, and seem to differ, are traced again, each by itself.

    Raises:
        DivergenceError: they differ.
    """
    taken: dict[int, Taken] = {}
    shared, sample = Shared(), sorted({0, world_size - 1})
    try:
        for listed in (sample, [rank for rank in range(world_size) if rank not in sample]):
            for rank in listed:
                taken[rank] = trace(rank, shared if shares else Shared())
            descriptions = {rank: description for rank, (_, _, description, _) in taken.items()}
            check_rows({rank: description.rows for rank, description in descriptions.items()})
            where = Ranks(world_size, 0, descriptions, {rank: rank for rank in range(world_size)})
            if None not in where.constants.values():
                break
    except DivergenceError:
        if not shares:
            raise
        return _take(trace, world_size, shares=False)
    return taken, where


@contextmanager
def fake_process_group(rank: int, world_size: int) -> Iterator[None]:
    """Run with a fake default process group, in which collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        if dist.is_initialized():  # else the model's code has destroyed it, and has its own error
            dist.destroy_process_group()


def _digests_of_code(trace: Traced) -> dict[str, str]:
    """Return digests of the tensors that the model's code computes: no checkpoint replaces them."""
    kinds = (StateKind.TRANSIENT, StateKind.CONSTANT)
    return digests({n: s.tensor for n, s in trace.state.items() if s.kind in kinds})


def _everywhere(
    digests_of: Mapping[int, Mapping[str, str]], size: int
) -> dict[str, dict[int, str]]:
    """Return name -> rank -> digest; ranks not captured have that of the others, or their own."""
    first, *others = digests_of.values()
    inferred: dict[str, dict[int, str]] = {}
    for name in (n for n in first if all(n in digest_of for digest_of in others)):
        digest_of = {rank: digests_of[rank][name] for rank in digests_of}
        agree = len(set(digest_of.values())) == 1
        inferred[name] = {
            rank: digest_of.get(rank, digest_of[0] if agree else f"rank {rank}")
            for rank in range(size)
        }
    return inferred
