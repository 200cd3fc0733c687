"""Lint a graph or a model: capture it where it is not a graph yet, and look for mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from compiler.capture import capture
from compiler.capture.capture import NOT_COMPARED
from compiler.errors import CommPlanError, DivergenceError
from compiler.ir.declared_inputs import Inputs, named
from compiler.ir.graph import SpmdGraph, spmd_graph, well_formed
from compiler.ir.mesh import Mesh, check_mesh
from compiler.ir.placement import check_inputs
from compiler.linter import Coverage, Finding, LintFacts, findings_of
from compiler.linter.coverage import coverage
from compiler.linter.single_rank import facts_of_one_rank
from compiler.optimize.model_api import as_call, check_model
from compiler.optimize.source import warn_undeclared
from compiler.runtime.group_exchange import exchange_if_any


class Findings(list[Finding]):
    """Findings in program order.

    Attributes:
        coverage: of how much of the graph placements are known; None where the ranks run
            different programs, and there is no graph.
    """

    def __init__(self, rows: Iterable[Finding], coverage: Coverage | None = None) -> None:
        super().__init__(rows)
        self.coverage = coverage


def lint(
    model_or_graph: nn.Module | ExportedProgram | SpmdGraph,
    *,
    mesh: Mesh | None = None,
    inputs: Inputs | None = None,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    group: Any = None,
) -> Findings:
    """Find wrong reductions: double, missing, over wrong ranks, of the wrong kind or terms.

    A value counts as a partial sum or a shard only where that follows from declared placements
    (``inputs``, DTensor parameters, the model's ``tp_plan``), and as the same on all ranks only
    where that is sure; nothing is reported of values that vary in an unknown way.

    Args:
        model_or_graph: a GraphModule of functional ATen and ``_c10d_functional`` calls with
            ``meta["val"]``; an ExportedProgram; or a tensor-parallel model, as for
            ``optimize_allreduce``.
        mesh: resolves the group names; needed where no process group is initialized.
        inputs: placeholder, argument, state_dict key or pattern -> placement, or {axis:
            placement}, as in ``optimize_graph``.
        example_inputs: arguments of a model that is not a graph yet, as for ``optimize_allreduce``.
        group: process group of all ranks that call this; default: all ranks of the job, if there
            is one. They are asked only where ``model_or_graph`` has to be captured. Where there
            are none to ask, what may be computed from the rank counts as unknown.

    Returns:
        A list of findings in program order, empty if there are none. Its ``coverage`` says of how
        much of the graph placements are known: no finding says nothing of the rest.

    Raises:
        CommPlanError: nothing can be looked at: bad placements or groups, a model that cannot
            be captured. That ranks run different programs is a finding, not an error.

    Warns:
        UndeclaredInputs: as ``optimize_graph``.
    """
    check_inputs(inputs)
    if mesh is not None:
        check_mesh(mesh)
    if isinstance(model_or_graph, fx.GraphModule) and mesh is not None:
        model_or_graph = spmd_graph(model_or_graph, mesh, inputs)
        well_formed(model_or_graph.graph)
    if isinstance(model_or_graph, SpmdGraph):
        warn_undeclared(model_or_graph, inputs)
        return _findings(LintFacts(model_or_graph))
    check_model(model_or_graph)
    is_graph = isinstance(model_or_graph, fx.GraphModule | ExportedProgram)
    if example_inputs is None and not is_graph:
        raise CommPlanError(
            "example_inputs= must be the arguments of a call to capture, got None",
            found=type(model_or_graph).__name__,
            remedy="pass example_inputs=, or an ExportedProgram",
        )
    args, kwargs = as_call(example_inputs) if example_inputs is not None else ((), {})
    try:
        captured = capture(
            model_or_graph, args, kwargs, mesh=mesh, exchange=exchange_if_any(group), inputs=inputs
        )
    except DivergenceError as error:
        return Findings([divergence(error)])
    if NOT_COMPARED in captured.remarks and not isinstance(model_or_graph, fx.GraphModule):
        names = {n: n for n in captured.graph.inputs} | {k: n for n, k in captured.state.items()}
        declared = {name for text in inputs or {} for name in named(text, names)}
        state = model_or_graph.state_dict
        saved = state if isinstance(state, dict) else state()
        facts = facts_of_one_rank(captured, saved.keys(), declared)
        return _findings(facts, captured.mutations, captured.state)
    if is_graph:
        warn_undeclared(captured.graph, inputs)
    return _findings(LintFacts(captured.graph), captured.mutations, captured.state)


def _findings(
    facts: LintFacts,
    written: Mapping[int, str] | None = None,
    keys: Mapping[str, str] = MappingProxyType({}),
) -> Findings:
    return Findings(findings_of(facts, written), coverage(facts, keys))


def divergence(error: DivergenceError) -> Finding:
    """Return the finding that ranks run different programs."""
    located = re.fullmatch(r"(.+):(\d+)", error.where)
    return Finding(
        rule="rank-dependent-program",
        problem=f"{error.what}: {error.found}",
        remedy=error.remedy,
        text="" if located else error.where,
        path=located[1] if located else "",
        line=int(located[2]) if located else 0,
    )
