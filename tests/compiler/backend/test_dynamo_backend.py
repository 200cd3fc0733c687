"""torch.compile(backend="commplan") on several ranks: what runs, and what is said of it."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

import compiler
from compiler.errors import CommPlanError, ExchangeError, PlacementError
from compiler.optimize import prepare
from compiler.runtime.model_calls import ModelCalls
from scripts.bench_backend import collectives
from tests.compiler.backend.models import HIDDEN, VOCABULARY, Branches, Cached, Decoder, sharded
from tests.compiler.optimize import models as shared
from tests.support.machines import machine

EAGER = {"inner": "eager"}


def compiled(model: nn.Module, dynamic: bool | None = None, **options: Any) -> Any:
    torch._dynamo.reset()
    compiler.reset_reports()
    options = EAGER | options
    return torch.compile(model, backend="commplan", options=options, dynamic=dynamic)


def counted() -> list[tuple[int, int, str]]:
    return [(r.before.all_reduces, r.after.all_reduces, r.verdict) for r in compiler.reports()]


def decoder(group: dist.ProcessGroup, dynamic: bool, mode: Any, kinds: dict[str, bool]) -> Any:
    ids = torch.arange(8).reshape(2, 4)
    model = Decoder()
    with torch.no_grad():
        expected = model(ids)
        sharded(model, DeviceMesh.from_group(group, "cpu", mesh_dim_names=("tp",)), **kinds)
    run = compiled(model, dynamic)
    with mode():
        torch.testing.assert_close(run(ids), expected)
        torch.testing.assert_close(run(ids[:, :2]), expected[:, :2])
    (report, *_) = compiler.reports()
    return counted()[0], report.inputs, str(report)


@pytest.mark.parametrize(
    ("kinds", "dynamic", "mode", "count"),
    [
        ({}, True, torch.no_grad, (5, 3)),
        ({"ends": False}, False, torch.inference_mode, (4, 2)),
        ({"sequence": True}, False, torch.no_grad, (0, 0)),
    ],
)
def test_models_that_pytorch_shards(
    gloo_pool: Any, kinds: dict[str, bool], dynamic: bool, mode: Any, count: tuple[int, int]
) -> None:
    for found, inputs, text in gloo_pool(2).run(decoder, dynamic, mode, kinds):
        assert found == (*count, "EQUIVALENT" if count[0] else found[2])
        assert inputs["{tp: S(0)}"] >= 2
        assert text.startswith("graph 0/0: optimized")


def caches(group: dist.ProcessGroup) -> Any:
    model, x, at = Cached(group), torch.ones(2, HIDDEN), torch.tensor([1, 3])
    expected, cache = torch.zeros(4, HIDDEN), torch.zeros(4, HIDDEN)
    run = compiled(model)
    with torch.no_grad():
        for step in range(3):
            torch.testing.assert_close(run(x + step, at, cache), model(x + step, at, expected))
            torch.testing.assert_close(cache, expected)
    return counted()


def test_caches_of_the_caller_are_written(gloo_pool: Any) -> None:
    assert gloo_pool(2).run(caches) == [[(2, 1, "EQUIVALENT")]] * 2


def ranges(group: dist.ProcessGroup, inner: str) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(VOCABULARY, shared.HIDDEN), shared.Stack(group))
    run = compiled(model, dynamic=True, machine=machine(2, start_ns=1000), inner=inner)
    found = dict[int, Any]()
    with torch.no_grad():
        for tokens in (6, 2, 4096, 4097):
            ids = torch.arange(tokens) % VOCABULARY
            torch.testing.assert_close(run(ids), model(ids), atol=1e-5, rtol=1e-4)
            found[tokens] = collectives(lambda: run(ids))  # noqa: B023
    report, *_ = compiler.reports()  # Inductor may ask for another where a share is one row
    return found, len({each.spmd for each in report.model.ranges}), report.verdict


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_a_graph_switches_by_the_number_of_tokens(gloo_pool: Any, inner: str) -> None:
    for found, plans, verdict in gloo_pool(2).run(ranges, inner):
        assert found[2] == {"all_reduce": 2}
        # gloo scatters a sum by an all_reduce
        assert found[4096] == found[4097] == {"all_reduce": 2, "all_gather": 3}
        assert plans >= 2
        assert verdict == "EQUIVALENT"


class Shifted(Branches):
    """Takes a number that may be negative, below a limit."""

    def forward(self, x: torch.Tensor, shift: int) -> torch.Tensor:
        return super().forward(x + shift if shift < 9 else x)


def shifted(group: dist.ProcessGroup) -> list[tuple[int, int, str]]:
    model, x = Shifted(group), torch.ones(4, HIDDEN)
    run = compiled(model)
    with torch.no_grad():
        for shift in (3, 4, -5):
            torch.testing.assert_close(run(x, shift), model(x, shift))
    return counted()


def test_numbers_without_a_least_value(gloo_pool: Any) -> None:
    for found in gloo_pool(2).run(shifted):
        assert found == [(2, 1, "EQUIVALENT")] * 2  # of 3 alone, then of any number below 9


def message(act: Callable[[], Any]) -> str:
    """What ``act`` warns of, once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    (text,) = {str(w.message) for w in caught if "commplan" in str(w.message)}
    return text


def broken(group: dist.ProcessGroup) -> Any:
    model, x = Branches(group), torch.ones(4, HIDDEN)
    expected, lower = model(x).detach(), prepare.lower

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise CommPlanError("no lowering today") if group.rank() == 1 else AssertionError

    if group.rank() == 1:
        prepare.lower = fails
    try:
        with torch.no_grad():
            run = compiled(model)
            text = message(lambda: torch.testing.assert_close(run(x), expected))
            (report,) = compiler.reports()
            strict = compiled(model, on_failure="raise")
            with pytest.raises(Exception, match="no lowering today") as caught:
                strict(x)
    finally:
        prepare.lower = lower
    return text, str(report), type(caught.value.inner_exception).__name__


def test_all_ranks_fall_back_together(gloo_pool: Any) -> None:
    first, second = gloo_pool(2).run(broken)
    assert first[0].startswith(
        "commplan does not optimize graph 0/0, which runs as it was written: rank 1 failed"
    )
    assert "found: rank 1: no lowering today" in first[0]
    assert second[0].endswith("as it was written: no lowering today")
    assert first[1].startswith("graph 0/0: fell back: rank 1 failed")
    assert (first[2], second[2]) == ("ExchangeError", "CommPlanError")


def gradients(group: dist.ProcessGroup) -> Any:
    model, x = Cached(group), torch.ones(2, HIDDEN)
    run = compiled(nn.Sequential(model.left, nn.SiLU()))
    run(x).sum().backward()  # owes no rank anything
    unplanned = [str(report) for report in compiler.reports()]
    model = Branches(group)
    run = compiled(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run(x)
    said = [str(w.message) for w in caught if "commplan" in str(w.message)]
    torch.testing.assert_close(result, model(x))
    return unplanned, said


def test_graphs_that_are_differentiated_run_as_they_are(gloo_pool: Any) -> None:
    for unplanned, said in gloo_pool(2).run(gradients):
        assert unplanned == [
            "graph 0/0: unchanged: the graph has no collectives between ranks: nothing to plan"
        ]
        (text,) = said
        assert "the graph is differentiated, and plans are for inference" in text
        assert "torch.no_grad()" in text


def apart(group: dist.ProcessGroup) -> str:
    rank = group.rank()
    run = compiled(Branches(group, layers=1 + rank), on_failure="warn")
    with torch.no_grad(), pytest.raises(Exception, match="different graphs") as caught:
        run(torch.ones(4, HIDDEN))
    assert isinstance(caught.value.inner_exception, ExchangeError)
    return str(caught.value.inner_exception)


def test_ranks_with_different_graphs_do_not_run_them(gloo_pool: Any) -> None:
    first, second = gloo_pool(2).run(apart)
    assert first == second
    assert first.startswith(
        "the ranks compile different graphs\n  found: rank 0: compiling a graph"
    )


def missing(group: dist.ProcessGroup) -> Any:
    if group.rank() == 1:
        dist.barrier(group=group)  # the other has given up
    run = compiled(Branches(group), timeout_s=0.5)
    with torch.no_grad(), pytest.raises(Exception, match="did not arrive") as caught:
        run(torch.ones(4, HIDDEN))
    if group.rank() == 0:
        dist.barrier(group=group)
    return str(caught.value.inner_exception)


def test_a_rank_that_does_not_compile_is_named(gloo_pool: Any) -> None:
    first, second = gloo_pool(2).run(missing)
    assert first.startswith("rank 1 did not arrive within 0.5 s\n  where: meeting ")
    assert ", compiling a graph of " in first
    assert second.startswith("rank 0 failed")
    assert "found: rank 0: rank 1 did not arrive within 0.5 s" in second


def checked(group: dist.ProcessGroup) -> Any:
    """Rank 1 makes its second call with other token ids."""
    run = compiled(OfIds(group), debug=True)
    ids = torch.arange(6)
    with torch.no_grad():
        first = run(ids)
        with pytest.raises(PlacementError) as caught:
            run(ids.flip(0) if group.rank() else ids)
        assert torch.equal(run(ids), first)
    return str(caught.value)


class OfIds(Branches):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nn.functional.one_hot(ids, HIDDEN).float())


def test_every_run_is_compared_in_debug_mode(gloo_pool: Any) -> None:
    first, second = gloo_pool(2).run(checked)
    assert first == second
    assert "must be the same on all ranks" in first
    assert "rank 1 differs from the others" in first


def broken_run(group: dist.ProcessGroup) -> str:
    """Rank 1 fails in a run; the collective in which rank 0 waits breaks."""
    run = compiled(Branches(group))
    with torch.no_grad():
        run(torch.ones(4, HIDDEN))
        calls: Any = ModelCalls.run

        def breaks(self: ModelCalls, *_: Any) -> Any:
            def fails() -> None:
                text = "[gloo/transport/tcp/pair.cc] Connection closed" if group.rank() == 0 else ""
                raise RuntimeError(f"/gloo/ {text}") if text else ValueError("no such row")

            return calls(self, fails, ())

        ModelCalls.run = breaks  # type: ignore[method-assign]
        try:
            with pytest.raises(Exception) as caught:  # noqa: PT011 -- of either rank its own
                run(torch.ones(4, HIDDEN))
        finally:
            ModelCalls.run = calls  # type: ignore[method-assign]
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_run_that_another_rank_broke_says_so(gloo_pool: Any) -> None:
    first, second = gloo_pool(2).run(broken_run)
    assert second == "ValueError: no such row"
    assert first.startswith("ExchangeError: rank 1 left call 2 of a graph of ")
    assert "found: rank 1: it failed: ValueError: no such row\n" in first


def aliases(group: dist.ProcessGroup) -> Any:
    def step(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sums = [x * 2, x * 2]
        for each in sums:
            dist.all_reduce(each, group=group)
        copy = torch.empty_like(y)
        copy.copy_(y)
        return *sums, copy

    torch._dynamo.reset()
    with torch.no_grad():
        x, y = torch.ones(4), torch.ones(4)
        first, second, copy = torch.compile(step, backend="commplan", options=EAGER)(x, y)
    return len({t.untyped_storage().data_ptr() for t in (first, second, copy, x, y)})


def test_results_share_no_memory_that_the_authors_do_not(gloo_pool: Any) -> None:
    assert gloo_pool(2).run(aliases) == [5, 5]
