"""From a graph behind AOTAutograd to the rewritten graphs that run, the same on all ranks.

Ranks meet for every graph with collectives, and decide together: where one fails, all fail.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import fx
from torch._dispatch.python import no_python_dispatcher
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import _disable_current_modes

from compiler.backend.aot_graphs import restored
from compiler.backend.backend_options import BackendOptions
from compiler.backend.placeholder_placements import DynamoInput, source_of
from compiler.capture import Capture, capture
from compiler.cost import Machine
from compiler.errors import CommPlanError, ExchangeError
from compiler.garbage import collection_paused
from compiler.ir import access
from compiler.ir.collectives import all_group_names
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placements
from compiler.ir.remark import Remark
from compiler.optimize.model_api import optimize_captured_ranges
from compiler.optimize.ranged import Ranged
from compiler.optimize.report import ModelReport
from compiler.optimize.validation import AUTO, launch_of, machine_of
from compiler.plan.planner_options import PlannerOptions
from compiler.plan.token_ranges import TokenTable
from compiler.runtime.lowering import lower
from compiler.runtime.process_groups import ProcessGroups
from compiler.runtime.rank_agreement import (
    GroupExchange,
    compare_plans,
    exchange_over,
    ranks_of_groups,
)


@dataclass(frozen=True)
class Rewritten:
    """What runs in the place of one graph.

    Attributes:
        forms: value of ``symbol`` -> the graph; equal plans share one.
        symbol: the size that counts tokens; None where one graph serves for all.
        report: what was done.
        placements: of the inputs, as text -> how many tensors have them.
        key: what the graphs were planned for, as text.
    """

    forms: TokenTable[fx.GraphModule]
    symbol: str | None
    report: ModelReport
    placements: dict[str, int]
    key: str


@contextmanager
def outside_tracing() -> Iterator[None]:
    """Within it, tensors are real: no modes and no fake tensors of a trace that goes on around.

    Nor its Python dispatcher, in which every op, also of a thread that communicates, needs
    Python's lock.
    """
    with no_python_dispatcher(), unset_fake_temporarily(), _disable_current_modes():
        yield


def rewritten(
    gm: fx.GraphModule, inputs: Sequence[DynamoInput], options: BackendOptions
) -> Rewritten | None:
    """Plan, rewrite, prove and lower ``gm``. All ranks that its collectives connect take part.

    Args:
        gm: the graph behind AOTAutograd of an inference call. Not changed.
        inputs: the inputs of the graph that Dynamo made.
        options: of the backend.

    Returns:
        None where no rank owes another anything.

    Raises:
        CommPlanError: the graph cannot be rewritten, or a rank failed; on all ranks.
        ExchangeError: with ``alone`` set, ranks that are elsewhere: none may go on.
    """
    names = all_group_names(gm.graph)
    everyone = ranks_of_groups(names) if names else None
    if everyone is None or everyone.size() == 1:
        return None
    exchange = exchange_over(everyone, options.timeout)
    if exchange is None:  # a fake group: there are no other ranks
        with outside_tracing():
            return _Planning(gm, inputs, options, None, ProcessGroups(everyone)).run()
    exchange = exchange.during(f"compiling {title(gm)}")
    with outside_tracing():
        return _together(
            exchange, _Planning(gm, inputs, options, exchange, ProcessGroups(everyone))
        )


def refuse(gm: fx.GraphModule, options: BackendOptions, why: CommPlanError) -> None:
    """Tell the ranks that this one does not plan ``gm``.

    Raises:
        CommPlanError: ``why``; nothing where no rank owes another anything.
        ExchangeError: with ``alone`` set, ranks that are elsewhere.
    """
    names = all_group_names(gm.graph)
    if names and (exchange := exchange_over(ranks_of_groups(names), options.timeout)) is not None:
        with outside_tracing():
            _fail(exchange.during(f"compiling {title(gm)}"), why)
    if names:
        raise why


def title(gm: fx.GraphModule) -> str:
    """A graph by its ops, which are the same on all ranks."""
    ops = [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]
    digest = hashlib.blake2b("\n".join(ops).encode(), digest_size=4).hexdigest()
    return f"a graph of {len(ops)} ops, digest {digest}"


def _together(exchange: GroupExchange, planning: _Planning) -> Rewritten:
    """The result, if all ranks have one."""
    try:
        result = planning.run()
        exchange.gather(None)
    except ExchangeError:
        raise
    except Exception as error:
        _fail(exchange, error)
        raise
    return result


def _fail(exchange: GroupExchange, error: Exception) -> None:
    """Let the other ranks fail too.

    Raises:
        ExchangeError: a rank failed for another reason.
    """
    reason = error.what if isinstance(error, CommPlanError) else f"{type(error).__name__}: {error}"
    try:
        exchange.fail(reason)
    except ExchangeError as failure:
        if failure.alone or len(set(failure.reasons.values())) > 1:
            raise failure from error


class _Planning:
    """One graph on its way; ``exchange`` is None where there are no ranks to ask."""

    def __init__(
        self,
        gm: fx.GraphModule,
        inputs: Sequence[DynamoInput],
        options: BackendOptions,
        exchange: GroupExchange | None,
        groups: ProcessGroups,
    ) -> None:
        self.gm, self.given, self.options = gm, inputs, options
        self.exchange, self.groups = exchange, groups

    @collection_paused()
    def run(self) -> Rewritten:
        """As ``rewritten``."""
        started, options = time.perf_counter(), self.options
        machine = machine_of(options.machine, _device(self.gm))
        search = PlannerOptions(
            options.policy, machine, launch_of(options.launch),
            allow_new_groups=self.groups.may_grow, fuse=options.kernels != "off",
        )  # fmt: skip
        source = source_of(self.gm, self.given)
        captured = capture(source.traced, exchange=self.exchange, inputs=source.placements)
        written = self._writes(captured, source.written)
        ranged, report = optimize_captured_ranges(
            captured, search, verify=options.verify, may_fall_back=options.machine == AUTO
        )
        name, tables = (machine.name, machine.digest) if machine else (None, "")
        plans = f"{ranged.table} {[result.plan.digest for result in ranged.results]} {tables}"
        if self.exchange is not None:
            compare_plans(
                self.exchange, plans, name,
                {"policy": options.policy, "launch": options.launch, "kernels": options.kernels,
                 "verify": options.verify, "inner": options.inner},
            )  # fmt: skip
        forms, remarks = self._forms(captured, ranged, written, source.written, machine)
        report = replace(
            report,
            remarks=(*report.remarks, *remarks),
            seconds={**(report.seconds or {}), "backend": time.perf_counter() - started},
        )
        counted = _counted(captured.graph.mesh, captured.graph.inputs)
        key = f"{plans} {name} {captured.groups} {captured.graph.mesh!r} "
        key += f"{captured.graph.inputs} {options}"
        return Rewritten(forms, ranged.symbol, report, counted, key)

    def _writes(self, captured: Capture, written: Sequence[str]) -> dict[int, str]:
        """Output of the functional graph -> the input that it is the new value of."""
        outputs = len(access.results(access.output(captured.graph.graph)))
        return dict(enumerate(written, outputs - len(written)))

    def _forms(
        self,
        captured: Capture,
        ranged: Ranged,
        writes: dict[int, str],
        written: Sequence[str],
        machine: Machine | None,
    ) -> tuple[TokenTable[fx.GraphModule], dict[Remark, None]]:
        """What runs for each number of tokens, and what lowering says of it."""
        eager = self.options.inner == "eager"
        most = [ranged.most(at, captured.ranges) for at in range(len(ranged.results))]
        tokens = [bounds.get(str(ranged.symbol), 1 << 62) for bounds in most]
        forms, remarks = dict[int, fx.GraphModule](), dict[Remark, None]()
        for at in sorted(range(len(most)), key=lambda at: -tokens[at]):
            graph = ranged.results[at].spmd  # that with the most tokens first: it sizes workspaces
            lowered = lower(
                graph, self.groups.names(graph, captured.groups),
                mutations=writes if eager else {}, kernels=self.options.kernels, machine=machine,
                most=most[at],
            )  # fmt: skip
            forms[at] = restored(self.gm, captured, lowered, written, eager=eager)
            remarks |= dict.fromkeys(lowered.remarks)
        return ranged.table.map(forms.__getitem__), remarks


def _device(gm: fx.GraphModule) -> torch.device | None:
    """Where the graph computes."""
    values = map(access.value, access.node_of(gm.graph, "placeholder"))
    return next((x.device for x in values if isinstance(x, torch.Tensor)), None)


def _counted(mesh: Mesh, inputs: Mapping[str, Placements]) -> dict[str, int]:
    """Placements as text -> how many inputs have them."""
    texts = (
        ", ".join(f"{axis}: {p}" for axis, p in zip(mesh.axes, placements, strict=True))
        for placements in inputs.values()
    )
    return dict(Counter(f"{{{text}}}" for text in texts))
