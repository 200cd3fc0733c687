"""One rank's model after a plan for a machine, and where the time that it saves comes from."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from compiler.analysis.layers import layer_metadata
from compiler.analysis.statistics import statistics
from compiler.capture import Capture
from compiler.cost import load_machine
from compiler.cost.units import PS_PER_US
from compiler.ir import access
from compiler.ir.collectives import c10d
from compiler.ir.row_ops import own_share
from compiler.optimize import optimize
from compiler.plan.decision import Decision
from compiler.plan.planner import Planner
from compiler.plan.planner_options import PlannerOptions
from compiler.plan.token_ranges import TokenRange, TokenTable
from compiler.runtime.guarded_graph import GuardedGraph
from compiler.runtime.lowering import lower
from compiler.runtime.module import OptimizedModule
from models.step3p5 import Step3p5ForCausalLM
from scripts.rank_models import Traffic

PARTS = {
    r"\.gate$|\.moe$": "router",
    r"norm$": "norms",
}
"""Module path -> what its kernels are for; the rest are additions to the residual, mostly."""
REST = "additions and the rest"
COMMUNICATION = "collectives"
Parts = dict[str, float]


@dataclass(frozen=True)
class Planned:
    """A model after the plan for some number of tokens.

    Attributes:
        module: called like the model.
        traffic: its collectives and their payload bytes.
        verdict: the checker's.
        spent: "as written", "merged" and "planned" -> part of the forward -> microseconds of it, by
            the machine file.
    """

    module: OptimizedModule
    traffic: Traffic
    verdict: str
    spent: dict[str, Parts]


class Plans:
    """Plans of a captured model for a machine.

    Args:
        model: that was captured.
        found: the capture.
        machine: name of the machine.
    """

    def __init__(self, model: Step3p5ForCausalLM, capture: Capture, machine: str) -> None:
        self.model, self.found = model, capture
        layers = layer_metadata(capture.graph, config=model.config)
        search = PlannerOptions(machine=load_machine(machine))
        self.planner = Planner(capture.graph, search, layers)

    def at(self, tokens: int) -> Planned:
        """The plan for ``tokens`` tokens, proven, as it runs where there is but this rank."""
        planner = self.planner
        decided = planner.decide(tokens)
        result = optimize(planner, decided, tokens=tokens)
        ready = lower(result.spmd, self.found.groups, mutations=self.found.mutations)
        for module in (ready.module, ready.eager):
            stand_in(module.graph)
            module.recompile()
        forms = TokenTable(1, (TokenRange(1, 1, ready),))
        prepared = GuardedGraph(forms, None, self.found, result.report, None)
        compared = {
            "as written": planner.as_written, "merged": planner.merged, "planned": decided
        }  # fmt: skip
        return Planned(
            OptimizedModule(self.model, lambda *_: prepared),
            [(c.kind, c.payload_bytes) for c in statistics(result.spmd.graph, tokens).collectives],
            str(result.verdict),
            {name: self._parts(plan, tokens) for name, plan in compared.items()},
        )

    def _parts(self, decided: Decision, tokens: int) -> Parts:
        parts = Counter[str]()
        for node, spent in self.planner.predicted_times(decided, tokens).items():
            parts[COMMUNICATION] += spent.communication_ps
            parts[part_of(access.layer_path(node))] += spent.computation_ps
        return {name: ps / PS_PER_US for name, ps in parts.items()}


def part_of(path: str) -> str:
    """What the kernels of the module at ``path`` are for."""
    return next((part for pattern, part in PARTS.items() if re.search(pattern, path)), REST)


def savings(spent: dict[str, Parts]) -> dict[str, float]:
    """What saves how many microseconds: merging reductions, then sharing rows."""
    written, merged, planned = (spent[k] for k in ("as written", "merged", "planned"))
    saved = {
        "merged collectives": written[COMMUNICATION] - merged[COMMUNICATION],
        "collectives on shares": merged[COMMUNICATION] - planned[COMMUNICATION],
    }
    for part in (*PARTS.values(), REST):
        saved[f"{part}, on shares"] = merged.get(part, 0.0) - planned.get(part, 0.0)
    return saved


def stand_in(graph: fx.Graph) -> None:
    """Lets collectives on shares of rows cost nothing, and return rows like those that ranks have.

    The fake process group leaves the result of a reduce_scatter as it finds it, by which tokens
    would choose other experts, and copies for an all_gather.
    """
    gathered = Gathered()
    for node in list(graph.nodes):
        if node.target is c10d.reduce_scatter_tensor.default:
            ranks = access.arguments(node)["group_size"]
            node.target, node.args = own_share, (*access.operands(node), 0, ranks, 0)
        elif node.target is c10d.all_gather_into_tensor.default:
            ranks = access.arguments(node)["group_size"]
            node.target, node.args = gathered, (*access.operands(node), ranks)
        else:
            continue
        node.kwargs = {}
        for wait in list(node.users):
            wait.replace_all_uses_with(node)
            graph.erase_node(wait)


class Gathered:
    """An all_gather of which every rank gives what the first call with its shape was given."""

    __name__ = "gathered"

    def __init__(self) -> None:
        self.made: dict[Any, Tensor] = {}

    def __call__(self, x: Tensor, ranks: int) -> Tensor:
        """[ranks * rows, …] of ``x`` [rows, …]; made once."""
        key = x.shape, x.dtype
        if key not in self.made:
            self.made[key] = torch.cat([x] * ranks)
        return self.made[key]
