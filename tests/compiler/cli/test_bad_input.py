"""Input that is wrong, huge or hostile: docs/bad_input.md, row by row; never a traceback."""

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler.cli.inputs import files
from compiler.cost import machine_files
from tests.compiler.cli.conftest import TWO_SUMS

LONG, DEEP = "9" * 5000, 100_000
DOCS = Path(__file__).parents[3] / "docs" / "bad_input.md"
ROWS = re.findall(r"^\| (.*?) \| `(.*?)` \|(?:.*?)\| (\d+): ?(.*?) \|$", DOCS.read_text(), re.M)
COLUMNS = "source,gpu,n_ranks,library,op,bytes,time_us,notes"


def changed(old: str, new: str) -> bytes:
    assert old in TWO_SUMS
    return TWO_SUMS.replace(old, new).encode()


def machine(**fields: Any) -> bytes:
    known = json.loads((machine_files.FOLDER / "h200x8.json").read_text())
    return json.dumps({k: v for k, v in (known | fields).items() if v != "left out"}).encode()


def collectives(schema: int = 1, mesh: Any = 4, layer: Any = "") -> bytes:
    entry = dict.fromkeys(("layer", "kind", "op", "axis", "operand", "line"), layer)
    schema_name = f"commplan.collectives/{schema}"
    return json.dumps(
        {"schema": schema_name, "mesh": {"tp": mesh}, "collectives": [entry]}
    ).encode()


FILES: dict[str, bytes | Callable[[], object]] = {
    "g.spmd": TWO_SUMS.encode(),
    "ranks.spmd": changed("tp = 4", "tp = 1000000000000"),
    "long_axis.spmd": changed("tp = 4", f"tp = {LONG}"),
    "long_size.spmd": changed("4096]", f"{LONG}]"),
    "deep.spmd": changed("%3)", "[" * DEEP + "%3" + "]" * DEEP + ")"),
    "operand.spmd": changed("(%2, %3)", f"(%2, {'9' * 29})"),
    "cut.spmd": changed(TWO_SUMS[TWO_SUMS.index("0) {axis") :], ""),
    "cut_line.spmd": changed(TWO_SUMS[TWO_SUMS.index(", %3)") :], ""),
    "op.spmd": changed("aten.add.Tensor", "os.system"),
    "empty.spmd": b"",
    "zeros.spmd": bytes(10_000),
    "utf16.spmd": TWO_SUMS.encode("utf-16"),
    "mark.spmd": TWO_SUMS.encode("utf-8-sig"),
    "folder.spmd": lambda: Path("folder.spmd").mkdir(),
    "loop.spmd": lambda: Path("loop.spmd").symlink_to("loop.spmd"),
    "endless.spmd": lambda: Path("endless.spmd").symlink_to("/dev/zero"),
    "folder.pt2": lambda: Path("folder.pt2").mkdir(),
    "cut.pt2": b"PK\x03\x04",
    "p.pt2": lambda: save("p.pt2"),
    "full.png": lambda: Path("full.png").symlink_to("/dev/full"),
    "folder.png": lambda: Path("folder.png").mkdir(),
    "schema.json": collectives(schema=9),
    "infinite.json": collectives(mesh=float("inf")),
    "numbers.json": collectives(layer=1),
    "deep.json": b"[" * DEEP,
    "none.json": machine(ranks_per_node=0),
    "true.json": machine(ranks_per_node=True),
    "huge.json": machine(ranks_per_node=10**400),
    "nan.json": machine(ranks_per_node=float("nan")),
    "extra.json": machine(titel="H200"),
    "missing.json": machine(title="left out"),
    "negative.csv": f"{COLUMNS}\nx,x,8,x,all_reduce,4096,-1,\n".encode(),
    "op.csv": f"{COLUMNS}\nx,x,8,x,all_produce,4096,9,\n".encode(),
}


def save(path: str) -> None:
    import torch

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    torch.export.save(torch.export.export(Model(), (torch.ones(4),)), path)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "LONGEST", 10**6)
    Path("g.spmd").write_text(TWO_SUMS)


@pytest.mark.parametrize(("what", "command", "code", "text"), ROWS, ids=[r[1][:60] for r in ROWS])
def test_rows(run, what, command, code, text):
    words = shlex.split(command.replace("LONG", LONG))
    for name in {*words} & FILES.keys():
        content = FILES[name]
        if callable(content):
            content()
        else:
            Path(name).write_bytes(content)
    shown = run(*words)
    assert text in shown.err
    assert shown.code == int(code)
    if shown.code:
        assert (shown.out, shown.err.count("error: ")) == ("", 1)
    assert len(shown.err) < 6000


def test_every_row_and_file_is_used():
    commands = " ".join(command for _, command, _, _ in ROWS)
    assert len(ROWS) == DOCS.read_text().partition("Held by tests")[0].count("\n| ") - 2
    assert [name for name in FILES if name not in commands] == []


@pytest.mark.parametrize("form", ["text", "json", "dot"])
def test_names_that_are_not_utf8(run, form):
    name, output = os.fsdecode(b"\xff.spmd"), os.fsdecode(b"\xfe.out")
    Path("g.spmd").rename(name)
    printed = run("dump", name, "--format", form)
    assert printed.code == 0
    assert run("dump", name, "--format", form, "-o", output).code == 0
    assert Path(output).read_text() == printed.out
    assert "\\udcff.spmd" in run("report", name).out
    assert "where: \\udcff2.spmd" in run("plan", os.fsdecode(b"\xff2.spmd")).err


def test_names_are_neither_markup_nor_control_codes(run):
    name = "[red]\x1b[31mx.spmd"
    Path("g.spmd").rename(name)
    for found in (run("plan", name), run("lint", name), run("plan", f"{name}.spmd")):
        assert "\x1b" not in found.out + found.err
        assert "[red]\\x1b[31mx.spmd" in found.out + found.err


def test_many_ranks_take_no_longer_than_few(run):
    """Sixteen thousand; what grew with the square of them took half a minute."""
    Path("g.spmd").write_text(TWO_SUMS.replace("tp = 4", "tp = 16384"))
    assert run("lint", "g.spmd").code == 0
