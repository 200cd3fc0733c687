"""``commplan lint``: findings on standard output, exit codes 0, 1 and 3."""

import json

import pytest

MISSING = """
mesh <tp = 4>
func @main(%0 "x": f32[4, 6] {tp: S(1)}, %1 "w": f32[6, 8] {tp: S(0)}, %2 "r": f32[4, 8]) {
  %3: f32[4, 8] = aten.mm(%0, %1)
  %4: f32[4, 8] = aten.add.Tensor(%3, %2)
  return (%4,)
}
"""
MESSAGE = """\
missing-reduction: aten.add.Tensor combines %3, a partial sum over the 4 ranks of tp, with %2, \
which is whole; the sum over tp is never taken
  %4: f32[4, 8] = aten.add.Tensor(%3, %2)
  would be right: all_reduce(%3) over tp before %4
"""
MODELS = """
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn


class Block(nn.Module):
    def __init__(self, sums):
        super().__init__()
        self.sums, self.down = sums, nn.Linear(4, 8, bias=False)

    def forward(self, x):
        y = self.down(x[:, :4].relu())
        for _ in range(self.sums):
            y = funcol.all_reduce(y, "sum", dist.group.WORLD)
        return x + y


def block(sums=1):
    return Block(sums), (torch.ones(6, 8),)


class OneRank(nn.Module):
    def forward(self, x):
        return funcol.all_reduce(x, "sum", dist.group.WORLD) if dist.get_rank() == 0 else x


def one_rank():
    return OneRank(), (torch.ones(6, 8),)
"""


@pytest.fixture
def missing(tmp_path):
    path = tmp_path / "missing.spmd"
    path.write_text(MISSING)
    return path


@pytest.fixture
def models(tmp_path, factories, monkeypatch):
    """Name of a module of models, some wrong."""
    (tmp_path / "cli_lint_models.py").write_text(MODELS)
    monkeypatch.delitem(__import__("sys").modules, "cli_lint_models", raising=False)
    return "cli_lint_models"


def test_no_finding(run, two_sums):
    found = run("lint", two_sums)
    assert (found.code, found.out) == (
        0,
        f"{two_sums}: no findings\n"
        "coverage 0 %: placements known of 0 of 2 inputs, 0 of 0 products\n"
        "  to declare with --input: x, y\n",
    )


def test_text(run, missing):
    found = run("lint", missing)
    coverage = "coverage 100 %: placements known of 3 of 3 inputs, 1 of 1 products"
    assert (found.code, found.out) == (1, f"{MESSAGE}{missing}: 1 error\n{coverage}\n")
    markdown = run("lint", missing, "--format=markdown").out
    assert markdown == f"```text\n{MESSAGE}```\n\n```text\n{missing}: 1 error\n{coverage}\n```\n"


def test_json(run, missing, two_sums):
    found = run("lint", missing, "--format", "json")
    result = json.loads(found.out)
    (one,) = result["findings"]
    assert found.code == 1
    assert one.pop("message") + "\n" == MESSAGE
    assert one == {
        "severity": "error",
        "rule": "missing-reduction",
        "problem": MESSAGE.splitlines()[0].partition(": ")[2],
        "remedy": "all_reduce(%3) over tp before %4",
        "op": "aten.add.Tensor",
        "value": "%4",
        "text": "%4: f32[4, 8] = aten.add.Tensor(%3, %2)",
        "path": "",
        "line": 0,
        "layer": "",
    }
    assert result["coverage"]["percent"] == 100
    assert json.loads(run("lint", two_sums, "--format=json").out) == {
        "schema": "commplan.lint/1",
        "findings": [],
        "coverage": {
            "percent": 0,
            "inputs": 2,
            "unknown_inputs": ["x", "y"],
            "products": 0,
            "unknown_products": [],
            "own_parts": [],
        },
    }


def test_annotations(run, missing):
    text = MESSAGE.rstrip().replace("%", "%25").replace("\n", "%0A")
    found = run("lint", missing, "--format=github")
    assert found.out == (
        f"::error file={missing},title=missing-reduction::{text}\n::notice title=coverage::"
        "coverage 100 %25: placements known of 3 of 3 inputs, 1 of 1 products\n"
    )


def test_models_with_declared_placements(run, models):
    name = f"{models}:block"
    right, twice = (run("lint", name, "--tp", 2, "--set", f"sums={n}") for n in (1, 2))
    assert right.code == 0
    assert right.out.splitlines()[-4:] == [
        f"{name}: no findings",
        "coverage 33 %: placements known of 1 of 2 inputs, 0 of 1 products",
        "  missing reductions not looked for in down",
        "  to declare with --input: down.weight",
    ]
    assert twice.code == 1
    assert twice.out.startswith("double-reduction: all_reduce over ")
    assert "<-- from cli_lint_models.py:16" in twice.out
    options = ("--tp", 2, "--set", "sums=0", "--format=github")
    blind = run("lint", name, *options)
    assert blind.code == 0
    assert blind.out == (
        "::notice title=coverage::coverage 33 %25: placements known of 1 of 2 inputs, "
        "0 of 1 products%0A  missing reductions not looked for in down%0A"
        "  to declare with --input: down.weight\n"
    )
    assert run("lint", name, *options, "--require-coverage", 33).code == 0
    less = run("lint", name, *options, "--require-coverage", 34)
    assert (less.code, less.out) == (2, blind.out.replace("::notice", "::error"))
    assert run("lint", name, *options, "--require-coverage").code == 2
    # Rows of the weight's input dimension, which the contraction runs over.
    known = run("lint", name, *options, "--input", "d*.weight=S(1)", "--require-coverage")
    assert known.code == 1
    assert known.out.startswith("::error ")


def test_an_annotation_names_file_and_line(run, models):
    found = run("lint", f"{models}:block", "--tp", 2, "--set", "sums=2", "--format=github")
    assert found.out.startswith(
        "::error file=cli_lint_models.py,line=16,title=double-reduction::double-reduction: "
    )


def test_ranks_that_run_different_ops(run, models):
    found = run("lint", f"{models}:one_rank", "--tp", 2)
    assert found.code == 1
    assert found.out.startswith("rank-dependent-program: the ranks do not run the same program: ")
    found = run("lint", f"{models}:one_rank", "--tp", 2, "--format=json", "--require-coverage")
    assert found.code == 1
    assert json.loads(found.out)["coverage"] is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no_such.spmd"], "cannot read the file"),
        (["step4"], "unknown model 'step4'"),
        (["models.step3p5.entry:prefill", "--input", "x"], "cannot read --input"),
        (["models.step3p5.entry:prefill", "--mesh", "tp=2"], "--mesh given for a model"),
    ],
)
def test_bad_input(run, arguments, text):
    found = run("lint", *arguments)
    assert (found.code, found.out) == (3, "")
    assert text in found.err


def test_unknown_reduction(run, two_sums):
    two_sums.write_text(two_sums.read_text().replace("op = sum", "op = foo", 1))
    found = run("lint", two_sums)
    line = "      %2: f32[s0, 8] = comm.all_reduce(%0) {axis = tp, op = foo}"
    assert (found.code, found.out) == (3, "")
    assert found.err[found.err.index("error: ") :] == (
        "error: unknown reduction 'foo'\n"
        f"  where: {two_sums}:5:57\n{line}\n{' ' * (line.index('foo'))}^\n"
        "  remedy: one of sum, avg, product, min, max, band, bor, bxor\n"
    )
