"""The table of scripts/bench_verify: what counts as wrong, and how it is written."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from compiler.check import Verdict
from compiler.ir.mesh import Mesh
from scripts import bench_verify
from scripts.bench_verify import COLUMNS, Outcome, main, row
from scripts.parallel_mistakes import rewrites
from tests.support.graphs import Builder


def outcome(verdict="EQUIVALENT", **counts):
    tried = Counter({"missing": 3, "double": 2})
    return Outcome(verdict, 438, 1.25, Counter({Verdict.EQUIVALENT: 4}), tried, each=0.21, **counts)


def test_a_line_per_model():
    verdicts = {Verdict.NOT_EQUIVALENT: 3, Verdict.UNPROVED: 1, Verdict.EQUIVALENT: 1}
    last = outcome(verdicts=Counter(verdicts))
    last.rewritten[Verdict.UNPROVED] = 2
    assert dict(zip(COLUMNS, row("Llama", 4, [outcome(), last]), strict=True)) == {
        "model": "Llama",
        "ranks": "4",
        "values": "438, 438",
        "verdict": "EQUIVALENT",
        "CPU s": "1.2, 1.2",
        "rewritten": "6",
        "proved": "4",
        "mistakes": "5",
        "refuted": "3",
        "unproved": "1",
        "accepted": "1",
        "CPU s each": "0.21",
    }
    assert "EQUIVALENT, UNPROVED" in row("Llama", 4, [outcome(), outcome("UNPROVED")])


def test_what_is_refused_or_accepted_fails(capsys, monkeypatch):
    pairs = [(twin(1), twin(2))]
    monkeypatch.setattr(bench_verify, "models", lambda options: [("one", 2, pairs)])
    assert main(["families", "--mistakes", "9"]) == 0
    monkeypatch.setattr(bench_verify, "mistakes", lambda graph, layouts: rewrites(graph))
    assert main(["families", "--mistakes", "9"]) == 1
    assert "accepted: mean of multiples at all_reduce" in capsys.readouterr().out
    pairs[:] = [(twin(1), twin(2, reduces=False))]
    assert main(["families"]) == 1
    assert "refused: output 0 on rank 0 differs" in capsys.readouterr().out


def twin(ranks, reduces=True):
    """A row-parallel product."""
    b = Builder(Mesh({"tp": ranks}))
    x, w = b.input("x", 4, 8 // ranks, varies=["tp"]), b.input("w", 4, 8 // ranks, varies=["tp"])
    y = b.call(torch.ops.aten.linear.default, x, w)
    graph = b.finish(b.all_reduce(y) if reduces and ranks > 1 else y)
    return SimpleNamespace(graph=graph, constants={})


def test_step3p5_of_two_layers(capsys):
    arguments = ["step3p5", "--layers", "4", "--tp", "2", "--experts", "ep", "--mistakes", "3"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| step3p5, 4 layers, ep | 2 |" in printed
    assert "| EQUIVALENT |" in printed
    assert "mistakes: 1 missing, 1 double, 1 averaged" in printed


def test_other_models_are_refused():
    with pytest.raises(SystemExit):
        main(["gpt2"])
