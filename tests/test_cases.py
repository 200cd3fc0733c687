from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import fx

from compiler.errors import GraphError, PlanError
from compiler.ir.graph import SpmdGraph
from compiler.ir.placement import Placements, Replicate
from compiler.ir.text import print_graph
from tests.support.case_files import CaseError, CaseFailedError, all_cases, read_cases
from tests.support.case_runner import Runner

RELU = torch.ops.aten.relu.default


@dataclass(frozen=True)
class Said:
    kind: str
    reason: str


@dataclass(frozen=True)
class Result:
    graph: SpmdGraph
    remarks: tuple[Said, ...]
    changed: bool


@dataclass(frozen=True)
class MergeRelus:
    """relu(relu(x)) = relu(x), as long as nobody else reads the inner one."""

    name: ClassVar[str] = "merge-relus"
    keep: str = "none"

    def apply(self, graph: SpmdGraph) -> Result:
        copied = graph.own_copy()
        remarks = []
        for node in list(copied.graph.nodes):
            if node.target is torch.ops.aten.tan.default:
                raise PlanError("tan is not planned", where="here", remedy="use sin")
            if node.target is not RELU or node.args[0].target is not RELU:
                continue
            if len(node.args[0].users) > 1:
                remarks.append(Said("missed", f"has {len(node.args[0].users)} users"))
                continue
            inner = node.args[0]
            node.replace_input_with(inner, inner.args[0])
            copied.graph.erase_node(inner)
            remarks.append(Said("passed", "merged"))
        changed = any(r.kind == "passed" for r in remarks)
        return Result(copied.with_graph(copied.graph, {}), tuple(remarks), changed)


CASES = """\
// PASS: merge-relus
mesh <tp = 2>
// CASE: two in a row
// BEFORE
func @f(%0 "x": f32[4] {tp: R}) {
  %1: f32[4] = aten.relu(%0)    // the inner one
  %2: f32[4] = aten.relu(%1)

  return %2
}
// AFTER
func @f(%0 "x": f32[4] {tp: R}) {
  %1: f32[4] = aten.relu(%0)
  return %1
}
// WRONG
func @f(%0 "x": f32[4] {tp: R}) {
  return %0
}
// VERDICT: NOT_EQUIVALENT value %0
// CASE: the inner one has two users
// BEFORE
func @f(%0 "x": f32[4] {tp: R}) {
  %1: f32[4] = aten.relu(%0)
  %2: f32[4] = aten.relu(%1)
  return %2, %1
}
// UNCHANGED
// MISSED: has 2 users
// CASE: an op that nobody planned
// BEFORE
func @f(%0 "x": f32[4] {tp: R}) {
  %1: f32[4] = aten.tan(%0)
  return %1
}
// ERROR: tan is not planned
// ERROR:   where: here
// ERROR:   remedy: use sin
"""
FIRST, SECOND, THIRD = 0, 1, 2


@dataclass
class Checker:
    """Says that graphs are equivalent if both hold a relu, and counts its calls."""

    calls: list[str] = field(default_factory=list)

    def __call__(self, source: SpmdGraph, target: SpmdGraph) -> tuple[str, str]:
        texts = [print_graph(source), print_graph(target)]
        verdict = "IDENTICAL" if texts[0] == texts[1] else "EQUIVALENT"
        if "relu" not in texts[1]:
            verdict = "NOT_EQUIVALENT"
        self.calls.append(verdict)
        return verdict, "at value %0"


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "toy.spmd"
    file.write_text(text)
    return file


def run(
    tmp_path: Path, text: str, which: int, factory: object = MergeRelus, **kwargs: object
) -> None:
    kwargs.setdefault("check", Checker())
    runner = Runner({"merge-relus": factory}, **kwargs)
    runner.run(read_cases(written(tmp_path, text))[which])


@pytest.mark.parametrize("which", [FIRST, SECOND, THIRD])
def test_cases_that_hold(tmp_path: Path, which: int) -> None:
    run(tmp_path, CASES, which)


def test_check_hook_sees_every_pair(tmp_path: Path) -> None:
    checker = Checker()
    run(tmp_path, CASES, FIRST, check=checker)
    assert checker.calls == ["IDENTICAL", "IDENTICAL", "EQUIVALENT", "NOT_EQUIVALENT"]
    checker.calls.clear()
    run(tmp_path, CASES, SECOND, check=checker)
    assert checker.calls == ["IDENTICAL", "IDENTICAL", "IDENTICAL"]


def test_all_cases_finds_files_below(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    written(tmp_path / "deep", CASES)
    titles = ["two in a row", "the inner one has two users", "an op that nobody planned"]
    assert list(map(str, all_cases(tmp_path))) == [f"toy: {title}" for title in titles]


def test_options_reach_the_pass(tmp_path: Path) -> None:
    made = []

    def factory(**options: str) -> MergeRelus:
        made.append(options)
        return MergeRelus(**options)

    run(tmp_path, CASES.replace("merge-relus", "merge-relus{keep=all}"), FIRST, factory)
    assert made == [{"keep": "all"}]


def test_assignments_reach_the_first_pass_which_runs_once(tmp_path: Path) -> None:
    made = []

    def factory(**options: Any) -> MergeRelus:
        made.append(options)
        return Restless()

    text = RESTLESS.replace("// BEFORE", "// ASSIGN: %0: P\n// ASSIGN: %1: P\n// BEFORE")
    run(tmp_path, text, FIRST, factory, check=None)
    assert made == [{"assign": ("%0: P", "%1: P")}]


def replicated(graph: SpmdGraph) -> Mapping[fx.Node, Placements]:
    return {node: (Replicate(),) for node in graph.graph.nodes}


def test_facts_hook_demands_placements_of_all_values(tmp_path: Path) -> None:
    stated = CASES.replace(": f32[4] = ", ": f32[4] {tp: R} = ")
    run(tmp_path, stated, FIRST, facts=replicated)
    with pytest.raises(CaseFailedError, match="does not print as it stands"):
        run(tmp_path, CASES, FIRST, facts=replicated)


BAD_FILES = [
    ("// PASSES: x\n", "1: unknown directive '// PASSES: x'; known are PASS, CASE, ASSIGN, BEFORE, "
     "AFTER, UNCHANGED, MISSED, ERROR, WRONG, VERDICT"),
    ("// a remark\n", "1: unknown directive '// a remark'; known are PASS, CASE, ASSIGN, BEFORE, "
     "AFTER, UNCHANGED, MISSED, ERROR, WRONG, VERDICT"),
    ("// PASS: p\n// BEFORE\n", "2: BEFORE stands before the first CASE"),
    ("// CASE: c\n", "1: a CASE needs a title, and a PASS before it"),
    ("// PASS: p\n// CASE:\n", "2: a CASE needs a title, and a PASS before it"),
    ("// PASS: p\n", "1: no CASE"),
    ("// PASS: p\n// CASE: c\n// PASS: q\n", "3: PASS stands after the first CASE"),
    ("// PASS: p\n// CASE: c\n// BEFORE\n// BEFORE\n", "4: a second BEFORE in one CASE"),
    ("// PASS: p\n// CASE: c\n// AFTER\n// AFTER\n", "4: a second AFTER in one CASE"),
    ("// PASS: p\n// CASE: c\n// BEFORE\n",
     "2: a CASE needs BEFORE, and one of AFTER, UNCHANGED and ERROR"),
    ("// PASS: p\n// CASE: c\n// UNCHANGED\n",
     "2: a CASE needs BEFORE, and one of AFTER, UNCHANGED and ERROR"),
    ("// PASS: p\n// CASE: c\n// BEFORE\n// AFTER\n// UNCHANGED\n",
     "2: a CASE needs BEFORE, and one of AFTER, UNCHANGED and ERROR"),
    ("// PASS: p\n// CASE: c\n// BEFORE\n// UNCHANGED\n// CASE: c\n",
     "5: a second case with the title 'c'"),
    ("// PASS: p\n// CASE: c\nmesh\n", "3: text outside a block"),
    ("// PASS: p\n// CASE: c\n// BEFORE\n// ASSIGN: %0: P\n", "4: ASSIGN stands after BEFORE"),
    ("// PASS: p\n// CASE: c\n// BEFORE\n// UNCHANGED\nreturn\n", "5: text outside a block"),
    ("// PASS: p\n// CASE: c\n// VERDICT: UNPROVED\n", "3: VERDICT needs a WRONG before it"),
    ("// PASS: p\n// CASE: c\n// BEFORE\n// UNCHANGED\n// WRONG\n",
     "5: WRONG needs a VERDICT after it"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[m for _, m in BAD_FILES])
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(CaseError) as error:
        read_cases(file)
    assert str(error.value) == f"{file}:{message}"


def test_unknown_pass(tmp_path: Path) -> None:
    with pytest.raises(CaseError) as error:
        run(tmp_path, CASES.replace("merge-relus", "merge-rules"), FIRST)
    file = tmp_path / "toy.spmd"
    assert str(error.value) == f"{file}:1: unknown pass 'merge-rules'; known are merge-relus"


class Lying(MergeRelus):
    def apply(self, graph: SpmdGraph) -> Result:
        found = super().apply(graph)
        return Result(found.graph, found.remarks, not found.changed)


class InPlace(MergeRelus):
    def apply(self, graph: SpmdGraph) -> Result:
        found = super().apply(graph)
        if found.changed:
            relus = [n for n in graph.graph.nodes if n.target is RELU]
            relus[-1].target = torch.ops.aten.neg.default
        return found


@dataclass(frozen=True)
class Restless(MergeRelus):
    """Turns sin to cos and cos to sin."""

    def apply(self, graph: SpmdGraph) -> Result:
        copied = graph.own_copy()
        for node in copied.graph.nodes:
            if node.target is RELU:
                node.target = torch.ops.aten.sin.default
            elif node.target is torch.ops.aten.sin.default:
                node.target = RELU
        return Result(copied.with_graph(copied.graph, {}), (), True)


RESTLESS = """\
// PASS: merge-relus
mesh <tp = 2>
// CASE: one
// BEFORE
func @f(%0 "x": f32[4] {tp: R}) {
  %1: f32[4] = aten.relu(%0)
  return %1
}
// AFTER
func @f(%0 "x": f32[4] {tp: R}) {
  %1: f32[4] = aten.sin(%0)
  return %1
}
"""
AFTER = "  %1: f32[4] = aten.relu(%0)\n  return %1\n"
FAILURES = [
    (CASES, FIRST, Lying, {}, "3: changed is False, and the result is"),
    (CASES, SECOND, Lying, {}, "21: changed is True, and the result is"),
    (CASES, FIRST, InPlace, {}, "3: the pass changed the graph it was given"),
    (RESTLESS, 0, Restless, {}, "3: a second run changes the result again:"),
    (CASES.replace(AFTER, "  return %0\n"), FIRST, MergeRelus, {}, "11: AFTER differs"),
    (CASES.replace("  %2", "  %3").replace("return %2", "return %3"), FIRST, MergeRelus, {},
     "4: the block does not print as it stands, but as"),
    (CASES.replace("// MISSED: has 2 users\n", ""), SECOND, MergeRelus, {},
     "21: missed remarks differ"),
    (CASES.replace("2 users", "3 users"), SECOND, MergeRelus, {}, "21: missed remarks differ"),
    (CASES.replace("%2, %1", "%2"), SECOND, MergeRelus, {}, "21: missed remarks differ"),
    (CASES.replace("%2, %1", "%2").replace("// MISSED: has 2 users\n", ""), SECOND, MergeRelus,
     {}, "21: expected UNCHANGED, found"),
    (CASES.replace("aten.tan", "aten.sin"), THIRD, MergeRelus, {}, "30: no error, expected:"),
    (CASES.replace("use sin", "use cos"), THIRD, MergeRelus, {}, "30: another error"),
    (CASES, FIRST, MergeRelus, {"check": None}, "16: WRONG cannot be judged"),
    (CASES, FIRST, MergeRelus, {"check": lambda *_: ("UNPROVED", "why")},
     "3: the checker says UNPROVED, expected IDENTICAL: why"),
    (CASES.replace("value %0\n", "value %7\n"), FIRST, MergeRelus, {},
     "16: the checker says of WRONG: NOT_EQUIVALENT at value %0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "which", "factory", "hooks", "message"), FAILURES, ids=[f[-1] for f in FAILURES]
)
def test_cases_that_do_not_hold(
    tmp_path: Path, text: str, which: int, factory: object, hooks: dict, message: str
) -> None:
    with pytest.raises(CaseFailedError) as error:
        run(tmp_path, text, which, factory, **hooks)
    assert str(error.value).startswith(f"{tmp_path / 'toy.spmd'}:{message}")


def test_after_that_equals_before(tmp_path: Path) -> None:
    before = CASES.split("// BEFORE\n")[2].split("//")[0]
    with pytest.raises(CaseFailedError, match="28: AFTER equals BEFORE: write UNCHANGED"):
        run(tmp_path, CASES.replace("// UNCHANGED\n", "// AFTER\n" + before), SECOND)


def test_parse_errors_give_the_line_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"(?s)unknown value '%9'.*toy\.spmd:6:26"):
        run(tmp_path, CASES.replace("aten.relu(%0)    //", "aten.relu(%9)    //"), FIRST)


def test_update_rewrites_after_blocks(tmp_path: Path) -> None:
    first = CASES.split("// CASE: ")[1]
    twice = CASES + "// CASE: again, " + first
    file = written(tmp_path, twice.replace(AFTER, "  return %0\n"))
    runner = Runner({"merge-relus": MergeRelus}, Checker())
    for case in read_cases(file):
        runner.run(case, update=True)
    assert file.read_text() == twice


def test_update_option_is_off_by_default(update_cases: bool) -> None:
    assert update_cases is False
