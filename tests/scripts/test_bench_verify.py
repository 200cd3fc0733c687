"""The table of scripts/bench_verify: what counts as wrong, and how it is written."""

from collections import Counter

import pytest

from scripts.bench_verify import COLUMNS, Outcome, main, row


def outcome(verdict="EQUIVALENT", accepted=()):
    return Outcome(verdict, 438, (1.25, 0.5), Counter({"missing": 3, "double": 2}), accepted, 0.21)


def test_a_line_per_model():
    assert dict(zip(COLUMNS, row("Llama", 4, outcome()), strict=True)) == {
        "model": "Llama",
        "ranks": "4",
        "values": "438",
        "verdict": "EQUIVALENT",
        "s (CPU)": "1.2 (0.5)",
        "mistakes": "5",
        "accepted": "0",
        "s each": "0.21",
    }


def test_what_is_wrong():
    assert not outcome().wrong
    assert outcome("UNPROVED").wrong
    assert outcome(accepted=("missing at %all_reduce",)).wrong


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
