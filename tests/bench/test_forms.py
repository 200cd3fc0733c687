"""A model timed in its forms, on ranks over gloo."""

import json
import statistics

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _functional_collectives as funcol

from bench.forms import MERGED, PLANNED, WRITTEN, measured_forms
from compiler.cli.commands.bench import answer, bench_json, blocks
from compiler.errors import CommPlanError
from tests.support.machines import machine as rounded_machine


class Branches(nn.Module):
    """Two branches, each with a sum over ranks of its own; and a cache that calls write."""

    def __init__(self, group):
        super().__init__()
        self.group = group
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16, bias=False))
            for _ in range(2)
        )

    def forward(self, x, cache):
        cache.append(x)
        return x + sum(funcol.all_reduce(f(x), "sum", self.group) for f in self.branches)


def measured_on(group, machine):
    torch.manual_seed(group.rank())
    model = Branches(group).eval()
    torch.manual_seed(9)
    cache: list[torch.Tensor] = []
    call = ((torch.randn(8, 16), cache), {})
    measured = measured_forms(model, call, machine=machine, rounds=3, group=group)
    assert cache == []  # what calls write, they write to copies
    return measured


def test_forms_in_turns_on_two_ranks(gloo_pool):
    machine = rounded_machine(2, memory=10)
    first, second = gloo_pool(2).run(measured_on, machine)
    assert [form.name for form in first.forms] == [WRITTEN, MERGED, PLANNED]
    written, merged, planned = first.forms
    assert written.collectives == {"all_reduce": 2}
    assert merged.collectives == {"all_reduce": 1}
    assert planned.collectives.keys() <= {"all_reduce", "reduce_scatter", "all_gather"}
    assert written.payload_bytes == 2 * merged.payload_bytes == 2 * 8 * 16 * 4
    assert (written.verdict, merged.verdict) == ("", "EQUIVALENT")
    assert first.tokens == 8
    for form, other in zip(first.forms, second.forms, strict=True):
        assert form.rounds_us == other.rounds_us  # those of the slowest rank
        assert len(form.rounds_us) == 3
        assert min(form.rounds_us) > 0
        assert 0 < form.communication_share < 1
        assert form.difference < 1e-6
        assert form.speedup == tuple(
            a / b for a, b in zip(written.rounds_us, form.rounds_us, strict=True)
        )
    assert written.predicted_us > merged.predicted_us >= planned.predicted_us > 0
    values = json.loads(json.dumps(bench_json("my:model", first)))
    assert values["forms"][1]["median_us"] == statistics.median(merged.rounds_us)
    shown = list(blocks("my:model", first))
    assert shown[0].startswith("my:model  2 x CPU  eager  8 tokens  machine round")
    assert sum(text.startswith(("merged: ", "planned: ")) for text in map(str, shown)) == 2


def test_answers_need_more_than_the_spread():
    from bench.forms import MeasuredForm

    def said(*speedup):
        form = MeasuredForm(MERGED, "EQUIVALENT", (1.0,), speedup, {}, 0, 0, 0.0, None, 0.0)
        return answer(form).split(": ")[1]

    assert said(1.1, 1.2, 1.3) == "faster"
    assert said(0.8, 0.9, 0.95) == "slower"
    assert said(0.9, 1.0, 1.2) == "neither faster nor slower"


def refused_on(group):
    with torch.device("meta"):
        model = Branches(group)
    with pytest.raises(CommPlanError, match="no weights to run with"):
        measured_forms(model, ((torch.ones(2, 16), []), {}), group=group)
    with pytest.raises(CommPlanError, match="on CUDA alone"):
        measured_forms(Branches(group), ((), {}), launch="graph", group=group)
    return dist.get_rank(group)


def test_what_cannot_be_measured(gloo_pool):
    assert gloo_pool(1).run(refused_on) == [0]
