"""The benchmark of parts, on a tiny model on the CPU."""

import re
import sys

import pytest
import torch
from torch import nn

from models.step3p5 import Step3p5Config, Step3p5ForCausalLM
from scripts import bench_parts
from scripts.bench_parts import PARTS, REST, ROUTER, marked, parts
from scripts.rank_models import prefill_call

SMALL = Step3p5Config.small(num_hidden_layers=3)


def test_every_operator_counts_for_the_innermost_part() -> None:
    model = Step3p5ForCausalLM(SMALL, dtype=torch.bfloat16)
    args, kwargs = prefill_call(16, SMALL.vocab_size, "cpu")
    with marked(model):
        spent = parts(lambda: model(*args, **kwargs), "cpu")
    assert set(spent) == {*PARTS.values(), ROUTER, REST}
    products = {part: x.products_us for part, x in spent.items()}
    assert products.pop("norms") == 0 < min(products.values())  # the rest has that of the head
    assert all(0 <= x.products_us <= x.us for x in spent.values())
    assert not any({"forward", "route"} & vars(module).keys() for module in model.modules())


def test_operators_of_no_part_are_the_rest() -> None:
    model = nn.Linear(4, 4, bias=False)
    spent = parts(lambda: model(torch.ones(2, 4)), "cpu")
    assert set(spent) == {REST}
    assert spent[REST].us > spent[REST].products_us > 0


def test_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--device", "cpu", "--layers", "3", "--tokens", "16,32", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_parts", *sizes])
    assert bench_parts.main() == 0
    printed = capsys.readouterr().out
    assert re.findall(r"prefill of (\d+) tokens", printed) == ["16", "32"]
    for part in (*PARTS.values(), ROUTER, REST, "all", "wall"):
        assert len(re.findall(rf"│ {part} +│ +\d+\.\d\d │", printed)) == 2
