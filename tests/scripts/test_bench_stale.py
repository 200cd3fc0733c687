"""The staleness table: calls that are wrong are called so."""

from __future__ import annotations

import torch

from compiler import CommPlanError
from compiler.capture.fake_ranks import fake_process_group
from scripts import bench_stale


def test_a_change_is_seen_and_undone() -> None:
    with fake_process_group(0, 2):
        (row,) = bench_stale.outcomes("optimize_allreduce", ["bool attribute"])
    assert (row["changed"], row["undone"]) == ("right (captured anew)", "right (kept)")


def test_calls_that_are_wrong_or_refused() -> None:
    with fake_process_group(0, 2), torch.no_grad():
        model = bench_stale.Model(1)
        x = torch.ones(bench_stale.TOKENS, bench_stale.WIDTH)

        def refusing(_: torch.Tensor) -> torch.Tensor:
            raise CommPlanError("not like this")

        said = [
            bench_stale.judged(run, model, x, is_view=False)
            for run in (model, lambda x: model(x) + 1, lambda x: model(x).double(), refusing)
        ]
    assert said[0] == "right (kept)"
    assert said[1] == f"{bench_stale.WRONG}: off by 1"
    assert said[2].startswith(bench_stale.WRONG)
    assert said[3] == "refused: not like this"


def test_looking_is_timed_beside_what_it_replaces() -> None:
    row = bench_stale.cost(1, 1)
    assert row["modules"] == 17
    assert row["more_us"] == row["watch_us"] - row["identity_us"]
