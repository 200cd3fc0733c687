"""The pipeline: verifies, records, observes, stops where it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from compiler.errors import GraphError, MeshError, VerificationError
from compiler.ir.graph import SpmdGraph
from compiler.ir.remark import PassResult, Remark, RemarkKind
from compiler.pipeline import PassRecord, Pipeline
from passes import EliminateDeadCode
from tests.support.graphs import aten, c10d, function


def graph() -> SpmdGraph:
    return function(
        '%0 "x": f64[4] {tp: V}',
        "%1: f64[4] = comm.all_reduce(%0) {axis = tp, op = sum}",
        "%2: f64[4] = aten.neg(%1)",
        "%3: f64[4] = aten.silu(%2)",
        "return %2",
    )


@dataclass(frozen=True)
class Rewrite:
    """Replaces one op of a kind by another."""

    name: ClassVar[str] = "rewrite"
    old: object
    made: object
    extra: tuple[object, ...] = ()

    def apply(self, graph: SpmdGraph) -> PassResult:
        copy = graph.own_copy()
        copy = SpmdGraph(copy.root, copy.graph, copy.mesh, copy.inputs)
        for node in copy.graph.nodes:
            if node.target is self.old:
                node.target, node.args = self.made, (node.args[0], *self.extra)
        remark = Remark(RemarkKind.PASSED, "%v2", "rewritten")
        return PassResult(copy, (remark,), changed=True)


WRONG = Rewrite(aten.neg.default, aten.abs.default)


def test_records_and_observers() -> None:
    seen: list[PassRecord] = []
    pipeline = Pipeline(observers=[seen.append])
    source = graph()
    once = pipeline.run(EliminateDeadCode(), source)
    assert pipeline.run(EliminateDeadCode(), once) is once
    assert [(r.name, r.index, r.changed) for r in seen] == [
        ("eliminate-dead-code", 0, True),
        ("eliminate-dead-code", 1, False),
    ]
    assert seen == pipeline.records
    assert seen[0].graph is once
    assert seen[0].seconds >= 0
    assert pipeline.remarks == ()


@pytest.mark.parametrize(("limit", "changed"), [(None, [1, 1]), (2, [1, 1]), (1, [1, 0]),
                                                (0, [0, 0])])  # fmt: skip
def test_bisect_limit_skips_the_passes_after_it(limit: int | None, changed: list[int]) -> None:
    pipeline = Pipeline(bisect_limit=limit)
    held = graph()
    for rewrite in (EliminateDeadCode(), WRONG):
        held = pipeline.run(rewrite, held)
    assert [r.changed for r in pipeline.records] == changed
    assert len(pipeline.remarks) == changed[1]


def test_check_each_finds_the_pass_at_fault() -> None:
    pipeline = Pipeline(check_each=True)
    once = pipeline.run(EliminateDeadCode(), graph())
    with pytest.raises(VerificationError) as caught:
        pipeline.run(WRONG, once)
    error = caught.value
    assert error.what == "pass rewrite changed the function of the graph: NOT_EQUIVALENT"
    assert error.where == "earlier passes: eliminate-dead-code"
    assert error.found.startswith("output 0 on rank 0 differs by ")
    assert error.remedy == "report this, with what `commplan reduce` makes of the graph"
    with pytest.raises(VerificationError, match="earlier passes: none"):
        Pipeline(check_each=True).run(WRONG, once)
    assert Pipeline().run(WRONG, once) is not once


def test_what_is_not_proved_may_be_left_out() -> None:
    pipeline = Pipeline(check_each=True, drop_unproved=True)
    once = pipeline.run(EliminateDeadCode(), graph())
    assert pipeline.run(WRONG, once) is once
    assert [r.changed for r in pipeline.records] == [True, False]
    (remark,) = pipeline.remarks
    assert remark.kind is RemarkKind.MISSED
    assert remark.reason.startswith("rewrite left out: the checker says NOT_EQUIVALENT, output 0")


def test_ill_formed_results_are_errors_at_once() -> None:
    with pytest.raises(GraphError, match=r"op aten.neg_.default of value %v2 mutates its operand"):
        Pipeline().run(Rewrite(aten.neg.default, aten.neg_.default), graph())
    other = Rewrite(c10d.all_reduce.default, c10d.all_reduce.default, ("sum", "pp"))
    with pytest.raises(MeshError, match="group name 'pp' does not resolve"):
        Pipeline().run(other, graph())


def test_lost_metadata_is_a_bug_of_the_pass() -> None:
    class Forgetful(Rewrite):
        def apply(self, graph: SpmdGraph) -> PassResult:
            result = super().apply(graph)
            del next(n for n in result.graph.graph.nodes if n.name == "v2").meta["val"]
            return result

    with pytest.raises(AssertionError, match=r"pass rewrite left %v2 without meta\['val'\]"):
        Pipeline().run(Forgetful(aten.neg.default, aten.abs.default), graph())
