"""The backend that Dynamo calls for every graph it traces."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch.fx._lazy_graph_module import _LazyGraphModule

from compiler.backend import graph_reports
from compiler.backend.backend_options import BackendOptions
from compiler.backend.compile_graph import Rewritten, refuse, rewritten
from compiler.backend.dynamo_guards import guard_modules
from compiler.backend.graph_reports import GraphReport, Outcome
from compiler.backend.inductor_cache import keyed
from compiler.backend.placeholder_placements import DynamoInput, dynamo_inputs
from compiler.errors import CaptureError, CommPlanError, ExchangeError
from compiler.ir import access

Compiled = Callable[[list[Any]], Any]
Compile = Callable[[fx.GraphModule], Compiled]

NOTHING_OWED = "the graph has no collectives between ranks: nothing to plan"


def commplan(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile a graph that Dynamo traced, its all_reduces placed where they cost least.

    Args:
        gm: torch functions on the model's tensors and the arguments.
        example_inputs: the values of its placeholders at the call that is compiled.
        options: see ``BackendOptions``.
        mode: mode of Inductor.

    Returns:
        What Dynamo calls in the place of ``gm``.

    Raises:
        CommPlanError: an option that there is not; with ``on_failure="raise"``, a graph that
            cannot be planned, on all ranks.
        ExchangeError: ranks that compile other graphs, or none: then nothing may run.
    """
    settings = BackendOptions.of(options, mode)
    guard_modules()
    graph = _Graph(settings, dynamo_inputs(gm, example_inputs))
    if settings.inner == "eager":
        return aot_autograd(
            fw_compiler=partial(graph.eager, trains=True),
            bw_compiler=lambda gm, _: op_by_op(gm),
            inference_compiler=partial(graph.eager, trains=False),
            keep_inference_input_mutations=True,
        )(gm, example_inputs)
    from torch._functorch import config as functorch_config
    from torch._inductor.compile_fx import compile_fx

    # AOTAutograd's own cache would return what was compiled for weights of another run, and on one
    # rank alone; Inductor's cache, behind the plan, is used.
    with functorch_config.patch(enable_autograd_cache=False):
        compiled: Any = compile_fx(
            gm, example_inputs, inner_compile=graph.inductor, config_patches=dict(settings.inductor)
        )
    return cast(Callable[..., Any], compiled)


class _Graph:
    """One graph of Dynamo's, which AOTAutograd hands on in one part, or two if it trains."""

    def __init__(self, options: BackendOptions, inputs: Sequence[DynamoInput]) -> None:
        self.options, self.given = options, inputs

    def eager(self, gm: fx.GraphModule, example_inputs: Sequence[Any], *, trains: bool) -> Compiled:
        """Runs op by op."""
        return self._compiled(gm, lambda module, _: op_by_op(module), trains=trains)

    def inductor(self, gm: fx.GraphModule, example_inputs: Sequence[Any], **rest: Any) -> Any:
        """Compiled by Inductor."""
        from torch._inductor.compile_fx import compile_fx_inner

        context = torch._guards.TracingContext.try_get()

        def compile_one(module: fx.GraphModule, key: str) -> Compiled:
            if context is not None and context.output_strides:
                context.output_strides.clear()  # of the form before, which has the same outputs
            with keyed(key):
                compiled: Compiled = compile_fx_inner(module, example_inputs, **rest)
            return compiled

        if rest.get("is_backward"):
            return compile_fx_inner(gm, example_inputs, **rest)
        return self._compiled(gm, compile_one, trains=not rest.get("is_inference"))

    def _compiled(
        self, gm: fx.GraphModule, compile_one: Callable[[fx.GraphModule, str], Compiled],
        *, trains: bool,
    ) -> Compiled:  # fmt: skip
        counts = _counts(gm)  # before guards of a rewritten graph replace symbols by numbers
        if (result := self._rewritten(gm, trains=trains)) is None:
            return compile_one(gm, "as it was written")
        first, *others = dict.fromkeys(r.plan for r in result.forms.ranges())
        if not others:
            return counted(compile_one(first, result.key), result)
        count = counts[str(result.symbol)]
        compiled = {form: compile_one(form, result.key) for form in (first, *others)}
        forms = result.forms.map(lambda tokens: compiled[tokens.plan])
        return counted(boxed(lambda inputs: forms.plan(count(inputs))(inputs)), result)

    def _rewritten(self, gm: fx.GraphModule, *, trains: bool) -> Rewritten | None:
        """What to run; None: the graph as it is. Reports which, and why."""
        report = GraphReport(_compile_id(), Outcome.UNCHANGED, NOTHING_OWED)
        try:
            if trains:
                refuse(gm, self.options, _trains())
            result = None if trains else rewritten(gm, self.given, self.options)
        except ExchangeError as error:
            if error.alone:
                raise
            self._fall_back(report, error)
            return None
        except Exception as error:
            self._fall_back(report, error)
            return None
        if result is None:
            graph_reports.add(report)
            return None
        graph_reports.add(
            replace(
                report, outcome=Outcome.OPTIMIZED, reason="", model=result.report,
                inputs=result.placements,
            )
        )  # fmt: skip
        return result

    def _fall_back(self, report: GraphReport, error: Exception) -> None:
        """Report and warn, or raise."""
        reason = str(error) if isinstance(error, CommPlanError) else repr(error)
        graph_reports.add(replace(report, outcome=Outcome.FELL_BACK, reason=reason))
        if self.options.on_failure == "raise":
            raise error
        warnings.warn(
            f"commplan does not optimize graph {report.graph_id}, which runs as it was written: "
            f"{reason}",
            stacklevel=2,
        )


def op_by_op(gm: fx.GraphModule) -> Compiled:
    """Runs a graph as it is, and no hooks of modules with it."""
    _LazyGraphModule.force_recompile(gm)
    forward = gm.forward
    return boxed(lambda inputs: forward(*inputs))


def counted(run: Compiled, result: Rewritten) -> Compiled:
    """Return what runs a graph, and lets the other ranks read how far this one is."""
    if (calls := result.calls) is None:
        return run

    def count(inputs: list[Any]) -> Any:
        calls.begin()
        try:
            if result.compare is not None:
                result.compare(inputs)
        except Exception as error:
            calls.refuse(error)
            raise
        calls.go_on(runs=True)
        outputs = calls.run(run, [inputs])
        calls.end()
        return outputs

    return boxed(count)


def boxed(run: Compiled) -> Compiled:
    """``run``, marked as taking one list of inputs, which it may empty."""
    vars(run)["_boxed_call"] = True
    return run


def _counts(gm: fx.GraphModule) -> dict[str, Callable[[list[Any]], int]]:
    """Symbol of a size -> what reads its value off the inputs of a call."""
    counters: dict[str, Callable[[list[Any]], int]] = {}
    for at, node in enumerate(access.node_of(gm.graph, "placeholder")):
        value = access.value(node)
        if isinstance(value, torch.SymInt):
            counters.setdefault(str(value), partial(_number_at, at))
        elif isinstance(value, torch.Tensor):
            for dim, size in enumerate(value.shape):
                counters.setdefault(str(size), partial(_size_at, at, dim))
    return counters


def _number_at(at: int, inputs: list[Any]) -> int:
    return int(inputs[at])


def _size_at(at: int, dim: int, inputs: list[Any]) -> int:
    return int(inputs[at].shape[dim])


def _compile_id() -> str:
    return str(torch._guards.CompileContext.current_compile_id() or "")


def _trains() -> CaptureError:
    return CaptureError(
        "the graph is differentiated, and plans are for inference",
        found="inputs that require gradients",
        remedy="call the model under torch.no_grad() or torch.inference_mode()",
    )
