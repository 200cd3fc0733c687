"""``lint`` on graphs, programs and models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn

from compiler import CommPlanError, Mesh, Shard, lint
from compiler.capture import capture_ranks
from compiler.capture.fake_ranks import fake_process_group
from compiler.errors import DivergenceError
from compiler.linter.api import divergence
from tests.support.graphs import function

HIDDEN, SHARD = 8, 4


class RowParallel(nn.Module):
    """A block that may forget its sum, or take it twice; declares what its weights are."""

    def __init__(self, sums: int) -> None:
        super().__init__()
        self.sums = sums
        self.up = nn.Linear(HIDDEN, SHARD, bias=False)
        self.down = nn.Linear(SHARD, HIDDEN, bias=False)
        self.tp_plan = {"up": "colwise", "down": "rowwise"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(torch.relu(self.up(x)))
        for _ in range(self.sums):
            y = funcol.all_reduce(y, "sum", dist.group.WORLD)
        return x + y


class RankZeroReduces(nn.Module):
    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.group = group or dist.group.WORLD

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return funcol.all_reduce(x, "sum", self.group) if dist.get_rank(self.group) == 0 else x


X = torch.ones(6, HIDDEN)


@pytest.mark.parametrize(
    ("sums", "rules"), [(0, ["missing-reduction"]), (1, []), (2, ["double-reduction"])]
)
def test_models(sums: int, rules: list[str]) -> None:
    with fake_process_group(0, 2):
        found = lint(RowParallel(sums), mesh=Mesh({"tp": 2}), example_inputs=(X,))
        program = torch.export.export(RowParallel(sums), (X,))
        weights = {"up.weight": Shard(0), "down.weight": Shard(1)}
        again = lint(program, mesh=Mesh({"tp": 2}), inputs=weights)
    assert [one.rule for one in found] == [one.rule for one in again] == rules
    for result in (found, again):
        assert result.coverage is not None
        assert result.coverage.percent == 100
    for one in found:
        assert one.source.startswith("test_api.py:")
        assert f"<-- from {one.source}" in str(one)


def test_no_finding_says_how_much_was_looked_at() -> None:
    with fake_process_group(0, 2):
        program = torch.export.export(RowParallel(0), (X,))
        blind = lint(program, mesh=Mesh({"tp": 2}))
        pattern = lint(program, mesh=Mesh({"tp": 2}), inputs={"d*n.weight": Shard(1)})
    assert blind == []
    assert blind.coverage is not None
    assert set(blind.coverage.unknown_inputs) == {"up.weight", "down.weight"}
    assert blind.coverage.unknown_products
    assert [one.rule for one in pattern] == ["missing-reduction"]


def test_graphs() -> None:
    graph = function(
        '%0 "x": f64[4, 6], %1 "w": f64[6, 8] {tp: R}',
        "%2: f64[4, 8] = aten.mm(%0, %1)",
        "return %2",
    )
    assert lint(graph) == []
    assert lint(graph.module, mesh=graph.mesh) == []
    cut = {"x": Shard(1), "w": Shard(0)}
    assert [one.rule for one in lint(graph.module, mesh=graph.mesh, inputs=cut)] == [
        "partial-output"
    ]


def test_a_model_needs_arguments() -> None:
    with pytest.raises(CommPlanError) as raised:
        lint(RowParallel(1))
    assert str(raised.value) == (
        "example_inputs= must be the arguments of a call to capture, got None\n"
        "  found: RowParallel\n"
        "  remedy: pass example_inputs=, or an ExportedProgram"
    )


def test_arguments_that_are_none() -> None:
    for options, text in (
        ({"mesh": {"tp": 2}}, "mesh= must be a Mesh\n  found: {'tp': 2}\n"),
        ({"inputs": "x"}, "inputs= must be a mapping of names to placements\n  found: 'x'\n"),
        ({"model_or_graph": None}, "not a model\n  found: NoneType\n"),
    ):
        with pytest.raises(CommPlanError) as raised:
            lint(**{"model_or_graph": nn.Linear(2, 2), "example_inputs": (X,)} | options)  # type: ignore[arg-type]
        assert str(raised.value).startswith(text)


def test_programs_that_differ() -> None:
    with pytest.raises(DivergenceError) as raised:
        capture_ranks(RankZeroReduces, lambda: ((X,), {}), 2)
    found = divergence(raised.value)
    assert found.rule == "rank-dependent-program"
    assert found.source.startswith("test_api.py:")
    assert str(found).startswith(
        "rank-dependent-program: the ranks do not run the same program: rank 0: "
    )


def differing(group: dist.ProcessGroup) -> list[str]:
    found = lint(RankZeroReduces(group), example_inputs=(X,), group=group)
    return [one.rule for one in found]


def test_real_ranks_that_differ_all_say_so(gloo_pool) -> None:  # type: ignore[no-untyped-def]
    assert gloo_pool(2).run(differing) == [["rank-dependent-program"]] * 2


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def total(x: torch.Tensor, op: str = "sum") -> torch.Tensor:
    return funcol.all_reduce(x, op, dist.group.WORLD)


class OneRank(nn.Module):
    """Column- and row-parallel weights, and what a rank computes from its number."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part, self.rank, self.ranks = part, dist.get_rank(), dist.get_world_size()
        self.norm = Norm()
        self.up = nn.Parameter(torch.ones(SHARD, HIDDEN))
        self.down = nn.Parameter(torch.ones(HIDDEN, SHARD))
        self.gain = nn.Parameter(torch.ones(SHARD))
        self.register_buffer("own", torch.full((SHARD,), float(self.rank)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.part in CODE:
            return CODE[self.part](self, x)
        return WEIGHTS[self.part](self, x, torch.relu(self.norm(x) @ self.up.t()) @ self.down.t())

    def own_rows(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(self.ranks, x.shape[0] // self.ranks, HIDDEN)[self.rank]


CODE: dict[str, Callable[[OneRank, torch.Tensor], torch.Tensor]] = {
    "rows": lambda m, x: total(x[m.rank * 3 : m.rank * 3 + 3]),
    "columns times a parameter": lambda m, x: total(m.gain * x.narrow(1, m.rank * SHARD, SHARD)),
    "a chunk": lambda m, x: total(x.chunk(m.ranks, -1)[m.rank]),
    "an offset": lambda m, x: total((x - m.rank * SHARD).relu()),
    "a weight": lambda m, x: total(x * float(m.rank + 1)),
    "a buffer": lambda m, x: total(m.own + x[:, :SHARD]),
}
WEIGHTS: dict[str, Callable[[OneRank, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "own rows": lambda m, x, y: (
        m.own_rows(x) + funcol.reduce_scatter_tensor(y, "sum", 0, dist.group.WORLD)
    ),
    "own rows of all": lambda m, x, y: m.own_rows(
        funcol.all_gather_tensor(y[:3], 0, dist.group.WORLD)
    ),
    "an average": lambda m, x, y: total(y, "avg") * m.ranks,
    "a division": lambda m, x, y: total(total(y)) / m.ranks,
    "twice": lambda m, x, y: total(total(y)),
    "residual": lambda m, x, y: total(y + x),
    "maximum": lambda m, x, y: total(y + total(x.mean(0), "max")),
    "never": lambda m, x, y: m.norm(y + x),
}
SURE = {
    "twice": "double-reduction",
    "residual": "replicated-term",
    "maximum": "replicated-term",
    "never": "missing-reduction",
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("part", [*CODE, *WEIGHTS])
def test_of_a_model_on_one_rank_only_what_is_sure_is_found(part: str, rank: int) -> None:
    weights = {"up": Shard(0), "down": Shard(1)} if part in WEIGHTS else None
    with fake_process_group(rank, 2):
        found = lint(OneRank(part), example_inputs=(X,), inputs=weights)
    assert [one.rule for one in found] == ([SURE[part]] if part in SURE else [])
    if part == "maximum":
        assert "which is the max over all ranks already" in found[0].problem
        assert "leave out" not in found[0].remedy
