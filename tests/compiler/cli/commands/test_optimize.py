"""``commplan optimize``, and programs saved by torch.export."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn

from compiler.ir.text import parse_graph

RANKS = ("--mesh", "tp=4", "--group", "0=tp")


class TwoSums(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = (nn.Linear(4, 8, bias=False) for _ in range(2))
        self.register_buffer("step", torch.ones(8))

    def forward(self, x, scale=2):
        group = dist.group.WORLD
        total = funcol.all_reduce(self.left(x), "sum", group)
        return (total + funcol.all_reduce(self.right(x), "sum", group)) * scale, scale, self.step


@pytest.fixture
def program(tmp_path):
    """A saved program of one rank of four, in a group named "0"."""
    dist.init_process_group("fake", rank=0, world_size=4)
    try:
        rows = {0: torch.export.Dim.DYNAMIC}
        exported = torch.export.export(
            TwoSums(), (torch.ones(3, 4), 2), dynamic_shapes=(rows, None), strict=False
        )
    finally:
        dist.destroy_process_group()
    path = tmp_path / "two_sums.pt2"
    torch.export.save(exported, path)
    return path


def test_text(run, two_sums, tmp_path):
    target = tmp_path / "out.spmd"
    found = run("optimize", two_sums, "-o", target, "--tokens", 64)
    assert (found.code, found.out) == (0, "")
    assert "2 collectives before, 1 after" in found.err
    parse_graph(target.read_text())
    assert target.read_text().count("all_reduce") == 1
    assert run("check", two_sums, target).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"two_sums.spmd", "out.spmd"}


def test_in_place(run, two_sums):
    assert run("optimize", two_sums, "-o", two_sums).code == 0
    assert two_sums.read_text().count("all_reduce") == 1


def test_program_keeps_its_signature_and_runs(run, program, tmp_path):
    target = tmp_path / "out.pt2"
    assert run("optimize", program, "-o", target, *RANKS).code == 0
    before, after = torch.export.load(program), torch.export.load(target)
    assert after.graph_signature.input_specs == before.graph_signature.input_specs
    assert after.state_dict.keys() == before.state_dict.keys()
    sums = [n for n in after.graph.nodes if "all_reduce" in str(n.target)]
    assert len(sums) == 1
    assert run("check", program, target, *RANKS).code == 0
    x = torch.randn(5, 4)
    dist.init_process_group("fake", rank=0, world_size=4)  # in which a sum is its first term
    try:
        wanted, found = before.module()(x, 2), after.module()(x, 2)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(found[0], wanted[0])
    assert found[1] == 2
    assert torch.equal(found[2], torch.ones(8))


def test_plan_of_a_program_states_what_it_assumes(run, program):
    found = json.loads(run("plan", program, *RANKS, "--tokens", "2", "--format", "json").out)
    assert found["assumed"] == ["numbers in a saved program are taken to be the same on all ranks"]
    assert found["plans"][0]["sections"][0]["after"]["counts"] == {"all_reduce": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "a .pt2 file does not say what its ranks are"),
        (("--mesh", "tp=4"), "group name '0' does not resolve"),
        (("--mesh", "tp=4"), "groups={'0': 'tp'}), or --group 0=tp"),
        (("--mesh", "tp"), "cannot read --mesh"),
        (("--mesh", "tp=4,tp=2"), "cannot read --mesh"),
        (("--mesh", "tp=0"), "axis 'tp' has no ranks"),
        (("--mesh", "tp=4", "--group", "0=ep"), "cannot read --group"),
        ((*RANKS, "--input", "x"), "cannot read --input"),
        ((*RANKS, "--input", "x=Q"), "cannot read --input"),
        ((*RANKS, "--input", "z=R"), "which the graph does not read"),
        ((*RANKS, "--input", "x=S(7)"), "shards a dimension it does not have"),
        ((*RANKS, "--input", "x=ep:R"), "names an unknown axis"),
    ],
)
def test_what_is_said_of_a_program_must_fit(run, program, tmp_path, options, message):
    found = run("optimize", program, "-o", tmp_path / "out.pt2", *options)
    assert (found.code, found.out) == (3, "")
    assert f"error: {message}" in found.err or message in found.err
    assert not (tmp_path / "out.pt2").exists()


def test_forms_must_agree(run, two_sums, tmp_path):
    found = run("optimize", two_sums, "-o", tmp_path / "out.pt2")
    assert found.code == 3
    assert "found: .spmd in, .pt2 out" in found.err


def test_no_file_without_proof(run, two_sums, tmp_path, monkeypatch):
    from compiler.check import Report, Verdict

    monkeypatch.setattr(
        "compiler.cli.commands.optimize.check", lambda *_: Report(Verdict.UNPROVED, "not shown")
    )
    found = run("optimize", two_sums, "-o", tmp_path / "out.spmd")
    assert found.code == 2
    assert "UNPROVED  not shown" in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["two_sums.spmd"]


def test_no_partial_file(run, two_sums, tmp_path, monkeypatch):
    target = tmp_path / "out.spmd"
    target.write_text("as it was")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    found = run("optimize", two_sums, "-o", target)
    assert found.code == 3
    assert "cannot write the file" in found.err
    assert "No space left on device" in found.err
    assert target.read_text() == "as it was"
    assert len(list(tmp_path.iterdir())) == 2


def test_not_a_program(run, tmp_path):
    path = tmp_path / "bad.pt2"
    path.write_bytes(b"not a zip file")
    found = run("optimize", path, "-o", tmp_path / "out.pt2", *RANKS)
    assert found.code == 3
    assert f"cannot read the file\n  where: {path}" in found.err


@pytest.mark.parametrize("command", ["lint", "dump", "check", "optimize"])
def test_inputs_that_do_not_differ_are_warned_of(run, two_sums, command):
    two_sums.write_text(two_sums.read_text().replace("{tp: V}", "{tp: R}"))
    more = {"check": [two_sums], "optimize": ["-o", two_sums]}.get(command, [])
    assert run(command, two_sums, *more).err.count("warning: no input differs between") == 1


def test_inputs_of_a_program_go_by_the_names_that_the_model_gives_them(run, program):
    found = run(
        "dump", program, *RANKS, "--before", "--input", "*.weight=S(1)", "--input", "step=R"
    )
    assert (found.code, "warning" in found.err) == (0, False)
    assert [found.out.count(f'_weight": f32[8, 4] {{tp: S({dim})}}') for dim in (0, 1)] == [0, 2]
