"""From a graph behind AOTAutograd to the rewritten graphs that run, the same on all ranks.

Ranks meet for every graph with collectives, and decide together: where one fails, all fail.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import no_python_dispatcher
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import _disable_current_modes

from compiler.backend.aot_graphs import restored
from compiler.backend.backend_options import BackendOptions
from compiler.backend.placeholder_placements import DynamoInput, source_of
from compiler.capture import Capture, capture
from compiler.errors import CommPlanError
from compiler.garbage import collection_paused
from compiler.ir import access
from compiler.ir.collectives import all_group_names
from compiler.ir.mesh import Mesh
from compiler.ir.placement import Placements, Replicate
from compiler.optimize.prepare import agree, comparison, lower_ranges, optimize_captured, remarks_of
from compiler.optimize.result import ModelReport
from compiler.optimize.validation import AUTO, planner_options
from compiler.plan.token_ranges import TokenTable
from compiler.runtime.group_exchange import GroupExchange, exchange_over, ranks_of_groups
from compiler.runtime.model_calls import ModelCalls
from compiler.runtime.process_groups import ProcessGroups
from compiler.runtime.rank_agreement import compare_calls, connected_ranks, text_of_tensor


@dataclass(frozen=True)
class Rewritten:
    """What runs in the place of one graph.

    Attributes:
        forms: value of ``symbol`` -> the graph; equal plans share one.
        symbol: the size that counts tokens; None where one graph serves for all.
        report: what was done.
        placements: of the inputs, as text -> how many tensors have them.
        key: what the graphs were planned for, as text.
        calls: counts the runs; None where there are no ranks to ask.
        compare: compares the inputs of a run with those of other ranks.
    """

    forms: TokenTable[fx.GraphModule]
    symbol: str | None
    report: ModelReport
    placements: dict[str, int]
    key: str
    calls: ModelCalls | None
    compare: Callable[[Sequence[Any]], None] | None


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
    exchange, groups = exchange_over(everyone, options.timeout), ProcessGroups(everyone)
    with outside_tracing():
        if exchange is None:  # a fake group: there are no other ranks
            return _planned(gm, inputs, options, None, groups)
        with exchange.together(f"compiling {title(gm)}") as ranks:
            return _planned(gm, inputs, options, ranks, groups)


def refuse(gm: fx.GraphModule, options: BackendOptions, why: CommPlanError) -> None:
    """Tell the ranks that this one does not plan ``gm``.

    Raises:
        CommPlanError: ``why``; nothing where no rank owes another anything.
        ExchangeError: with ``alone`` set, ranks that are elsewhere.
    """
    names = all_group_names(gm.graph)
    if names and (exchange := exchange_over(ranks_of_groups(names), options.timeout)) is not None:
        with outside_tracing():
            exchange.during(f"compiling {title(gm)}").share_failure(why)
    if names:
        raise why


def title(gm: fx.GraphModule) -> str:
    """A graph by its ops, which are the same on all ranks."""
    ops = [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]
    digest = hashlib.blake2b("\n".join(ops).encode(), digest_size=4).hexdigest()
    return f"a graph of {len(ops)} ops, digest {digest}"


@collection_paused()
def _planned(
    gm: fx.GraphModule,
    inputs: Sequence[DynamoInput],
    options: BackendOptions,
    exchange: GroupExchange | None,
    groups: ProcessGroups,
) -> Rewritten:
    """As ``rewritten``; ``exchange`` is None where there are no ranks to ask."""
    started, eager = time.perf_counter(), options.inner == "eager"
    chosen = planner_options(
        options.policy, options.machine, options.launch,
        device=_device(gm), kernels=options.kernels,
    )  # fmt: skip
    chosen = replace(chosen, allow_new_groups=groups.may_grow)
    traced, placements, written = source_of(gm, inputs)
    captured = capture(traced, exchange=exchange, inputs=placements)
    result = optimize_captured(
        captured, chosen, verify=options.verify,
        may_fall_back=options.machine == AUTO,
    )  # fmt: skip
    if exchange is not None:
        agree(
            exchange, result, chosen,
            kernels=options.kernels, verify=options.verify, inner=options.inner,
            debug=options.debug,
        )  # fmt: skip
    outputs = len(access.results(access.output(captured.graph.graph)))
    writes = dict(enumerate(written, outputs - len(written)))
    variants = lower_ranges(
        result, captured, groups,
        mutations=writes if eager else {}, kernels=options.kernels, machine=chosen.machine,
    )  # fmt: skip
    forms = {
        form: restored(gm, captured, form, written, eager=eager)
        for form in dict.fromkeys(tokens.plan for tokens in variants.ranges())
    }
    report = replace(
        result,
        remarks=(*result.remarks, *dict.fromkeys(remarks_of(variants))),
        seconds={**result.seconds, "backend": time.perf_counter() - started},
    )
    counted = _counted(captured.graph.mesh, captured.graph.inputs)
    name = chosen.machine and chosen.machine.name
    key = f"{result.digests} {name} {captured.groups} {captured.graph.mesh!r} "
    key += f"{captured.graph.inputs} {options}"
    table = variants.map(lambda tokens: forms[tokens.plan])
    calls = compare = None
    if exchange is not None:
        connected = connected_ranks(captured.graph)
        calls = ModelCalls(exchange.roll_call, title(gm))
        calls.connect(frozenset(next(part for part in connected if exchange.rank in part)))
        if options.debug:
            compare = _comparison(gm, captured, exchange, connected, result.digests)
    return Rewritten(table, result.symbol, report, counted, key, calls, compare)


def _comparison(
    gm: fx.GraphModule,
    captured: Capture,
    exchange: GroupExchange,
    connected: Collection[Sequence[int]],
    plans: str,
) -> Callable[[Sequence[Any]], None]:
    """What compares the inputs of a run: of integers that must be the same, the values, too."""
    names = [str(node.target) for node in access.node_of(gm.graph, "placeholder")]
    values = comparison(exchange, captured)
    same = {name for name, placed in captured.graph.inputs.items() if Replicate() in placed}

    def compare(inputs: Sequence[Any]) -> None:
        tensors = {n: x for n, x in zip(names, inputs, strict=True) if isinstance(x, torch.Tensor)}
        texts = {name: text_of_tensor(x) for name, x in tensors.items()}
        compare_calls(exchange, connected, plans, texts)
        values({n: x for n, x in tensors.items() if n in same and not x.is_floating_point()})

    return compare


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
