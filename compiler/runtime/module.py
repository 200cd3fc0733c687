"""The optimized model: called like the model, with its state_dict, running proven graphs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from compiler.capture.call_form import Arguments, CallForm
from compiler.capture.python_reads import Reads
from compiler.errors import CommPlanError
from compiler.runtime.call_cache import Recognizer
from compiler.runtime.guarded_graph import (
    CallKind,
    GuardedGraph,
    Values,
    autocast_state,
    call_kind,
    varying_numbers,
)
from compiler.runtime.lowering import Lowered
from compiler.runtime.model_calls import ModelCalls
from compiler.runtime.rank_agreement import text_of_tensor
from compiler.runtime.watch import UNCHANGED, Reason, Watch, Watched

Prepare = Callable[[tuple[Any, ...], Mapping[str, Any], Reason], GuardedGraph]
REMEMBERED = 4096
"""Calls whose graph is found by their sizes alone."""
MAX_STALE = 8
"""Graphs of one kind of call that are kept although the model has changed since."""


class _Call:
    """A call whose graph is chosen.

    No dataclass: compilers look into frozen ones, and would check all they hold at every call.
    """

    def __init__(
        self, prepared: GuardedGraph, variant: Lowered, values: Values, arguments: Arguments
    ) -> None:
        self.prepared, self.variant, self.values, self.given = prepared, variant, values, arguments


class OptimizedModule(nn.Module):
    """Runs a model through graphs that were rewritten and proven equivalent.

    A call whose argument tree, element types, devices, constants and sizes fit a prepared graph
    runs it, if all Python state that its trace read, and autocast, are as they were then; any other
    is captured, planned and proven first. Of a call's tensors, shapes alone decide which graph
    runs, so that all ranks choose alike. A call without tokens (a size of zero) runs the model
    itself: it owes no rank a sum.

    Attributes:
        original: the model. Its parameters are this module's, under the same names.
        captures: number of graphs that were made, those that were dropped since included.
    """

    def __init__(
        self,
        model: nn.Module,
        prepare: Prepare,
        *,
        unchanged: Any = None,
        debug: bool = False,
        calls: ModelCalls | None = None,
    ) -> None:
        """Nothing is captured before the first call or ``prepare_call``.

        Args:
            model: the model.
            prepare: captures, plans and proves the graph for a call, given what has changed since
                a graph for such calls was made.
            unchanged: the report of a model that is to run as it is; nothing is captured then.
            debug: compare every call between ranks, and the inputs that must be the same.
            calls: counts them, for the other ranks to read; None if there are none.
        """
        training = model.training
        object.__setattr__(self, "original", model)
        super().__init__()
        self.training = training
        self._parameters = model._parameters
        self._buffers = model._buffers
        self._modules = model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.debug, self.unchanged, self._calls = debug, unchanged, calls
        self._prepare = prepare
        self._form = CallForm.of(model)
        self._graphs: dict[Any, list[GuardedGraph]] = {}
        self._seen: dict[Hashable, tuple[GuardedGraph, Lowered]] = {}
        self._recognized = Recognizer(self._form)
        self._compared: set[int] = set()
        self._watch = Watch()
        self._watched: dict[int, Watched] = {}
        self._dropped: dict[CallKind, Reason] = {}
        self._recaptured = Counter[Reason]()
        self.captures = 0
        self._warned: set[str] = set()

    original: nn.Module

    @property
    def training(self) -> bool:
        """Whether the model trains; one flag for both."""
        return self.original.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.original.training = mode

    def train(self, mode: bool = True) -> OptimizedModule:
        """As the model's own, which may leave some of its modules as they are."""
        self.original.train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result, computed by the prepared graph for this call."""
        if self.unchanged is not None:
            return self.original(*args, **kwargs)
        begun = self._begun(args, kwargs, compiling=torch.compiler.is_compiling())
        if begun is None:
            return self.original(*args, **kwargs)
        run, inputs, call = begun
        with torch.no_grad():
            if torch.compiler.is_compiling() or self._calls is None:
                outputs = run(*inputs)
            else:
                outputs = self._calls.run(run, inputs)
        return self._finished(outputs, call)

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def _begun(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, compiling: bool = False
    ) -> tuple[nn.Module, list[torch.Tensor], _Call] | None:
        """The graph for this call and what it reads; None for a call without tokens.

        A compiler of this module (``torch.compile``) sees the graph alone, not how it is chosen.
        """
        if (calls := self._calls) is None:
            return self._chosen(args, kwargs, compiling)
        calls.begin()
        try:
            chosen = self._chosen(args, kwargs, compiling)
        except BaseException as error:
            calls.refuse(error)
            raise
        calls.go_on(runs=chosen is not None)
        return chosen

    def _chosen(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], compiling: bool
    ) -> tuple[nn.Module, list[torch.Tensor], _Call] | None:
        self._look()
        arguments, key = self._recognized(args, kwargs)
        chosen_graph = self._seen.get((key, self._around()))
        if key is None or chosen_graph is None:
            if arguments.lacks_tokens:
                return None
            chosen_graph = self._graph_for(arguments, args, kwargs)
            if key is not None:
                self._remember((key, self._around()), chosen_graph)
        prepared, variant = chosen_graph
        if self.debug and prepared.compare_calls is not None:
            prepared.compare_calls(self._texts(arguments))
        if prepared.compare_inputs is not None and (
            self.debug or id(prepared) not in self._compared
        ):
            prepared.compare_inputs(_replicated(prepared, arguments))
            self._compared.add(id(prepared))
        values = prepared.values(self.original, arguments)
        chosen = _Call(prepared, variant, values, arguments)
        if compiling:
            return *prepared.compiled(variant, values), chosen
        return variant.eager, prepared.inputs(values), chosen

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def _finished(self, outputs: Any, call: _Call) -> Any:
        if self._calls is not None:
            self._calls.end()
        with torch.no_grad():
            return call.prepared.result(call.variant, outputs, call.values, call.given)

    def _texts(self, arguments: Arguments) -> dict[str, str]:
        """Name of each tensor of a call -> what must be the same of it on all ranks."""
        return {
            name: text_of_tensor(x)
            for name, x in zip(self._form.names(arguments), arguments.leaves, strict=True)
            if isinstance(x, torch.Tensor)
        }

    def prepare_call(self, *args: Any, **kwargs: Any) -> GuardedGraph:
        """Capture, plan and prove the graph for calls like this one, unless there is one."""
        self._look()
        return self._graph_for(self._form.flatten(args, kwargs), args, kwargs)[0]

    def _remember(self, call: Hashable, chosen: tuple[GuardedGraph, Lowered]) -> None:
        """So that calls of these sizes are not looked at again; growing caches have ever new."""
        if len(self._seen) >= REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._seen[call] = chosen

    def _graph_for(
        self, arguments: Arguments, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[GuardedGraph, Lowered]:
        prepared = self._fitting(arguments, args, kwargs)
        return prepared, prepared.variant(arguments)

    def _around(self) -> tuple[Any, ...]:
        """What decides which graph runs besides the call: autocast, and the model's state."""
        return autocast_state(), self._watch.state

    def _look(self) -> None:
        """Notice what has changed in the model; graphs of its former state wait for it to return.

        Those that read a module or tensor that the model no longer holds are dropped, so that it
        is not kept alive.
        """
        if self._watch.unchanged():
            return
        self._watch.update()
        form = CallForm.of(self.original)
        if form != self._form:
            self._form, self._recognized = form, Recognizer(form)
        for kind, graphs in self._graphs.items():
            stale = [p for p in graphs if not self._watched[id(p)].is_valid]
            lost = [p for p in stale if self._watched[id(p)].releases_state]
            kept = [p for p in stale if not self._watched[id(p)].releases_state]
            for prepared in (*lost, *kept[:-MAX_STALE]):
                self._dropped[kind] = self._watched[id(prepared)].reason
                self._drop(graphs, prepared)

    def _drop(self, graphs: list[GuardedGraph], prepared: GuardedGraph) -> None:
        graphs[:] = [other for other in graphs if other is not prepared]
        self._watch.remove(self._watched.pop(id(prepared)))
        self._compared.discard(id(prepared))
        self._seen.clear()

    def _reason(self, kind: CallKind, arguments: Arguments) -> Reason:
        """What has changed since a graph was made that would run this call."""
        stale = (self._watched[id(p)] for p in self._graphs[kind] if p.accepts(arguments))
        nearest = min((graph.reason for graph in stale), key=lambda r: len(r.names), default=None)
        reason = nearest or self._dropped.pop(kind, UNCHANGED)
        self._recaptured[reason] += 1
        if reason and self._recaptured[reason] == 3:
            warnings.warn(
                f"the model was captured anew three times because of {', '.join(reason.names[:3])}:"
                " pass what changes from call to call as a tensor",
                stacklevel=2,
            )
        return reason

    def _fitting(
        self, arguments: Arguments, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> GuardedGraph:
        kind = call_kind(arguments)
        graphs = self._graphs.setdefault(kind, [])
        for prepared in graphs:
            if self._watched[id(prepared)].is_valid and prepared.accepts(arguments):
                return prepared
        with _disable_current_modes():  # a mode around the call is about its ops, not capture's
            prepared = self._prepare(args, kwargs, self._reason(kind, arguments))
        self.captures += 1
        if self._calls is not None:
            self._calls.connect(prepared.in_step)
        graphs.append(prepared)
        state = prepared.state(self.original)
        reads = prepared.captured.reads or Reads(self.original)
        self._watched[id(prepared)] = self._watch.add(reads, state.slots, state.refresh)
        self._warn_of_numbers(kind, arguments)
        return prepared

    def _warn_of_numbers(self, kind: CallKind, arguments: Arguments) -> None:
        """Say so, once, where a graph is made for each value of a Python number."""
        for at in varying_numbers(kind, self._graphs):
            name = self._form.names(arguments)[at]
            if name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"a graph was captured and proven for each value of the Python number {name!r} "
                    f"({arguments.leaves[at]!r} is the third), and is kept; pass a tensor instead",
                    stacklevel=2,
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise not_copied()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise not_copied()

    @property
    def prepared(self) -> tuple[GuardedGraph, ...]:
        """All prepared graphs, by kind of call."""
        return tuple(p for graphs in self._graphs.values() for p in graphs)

    @property
    def reports(self) -> tuple[Any, ...]:
        """What was done for each prepared graph."""
        return tuple(prepared.report for prepared in self.prepared)

    @property
    def report(self) -> Any:
        """What was done for the graph prepared last: plan, verdict, remarks, statistics.

        Raises:
            CommPlanError: nothing was prepared yet.
        """
        if self.unchanged is not None:
            return self.unchanged
        if not self.prepared:
            raise CommPlanError(
                "nothing has been optimized yet",
                remedy="call the model once, or pass example_inputs= to optimize_allreduce",
            )
        return self.prepared[-1].report

    def graph_module(self, num_tokens: int) -> torch.fx.GraphModule:
        """The graph that runs for calls with ``num_tokens`` tokens.

        Raises:
            CommPlanError: that is not a count, or no prepared graph covers it.
        """
        if not isinstance(num_tokens, int):
            raise CommPlanError(
                "not a number of tokens", found=repr(num_tokens), remedy="pass an integer"
            )
        for prepared in sorted(self.prepared, key=lambda p: p.counts_tokens is None):
            if prepared.covers(num_tokens):
                return prepared.variants.plan(num_tokens).module
        raise CommPlanError(
            f"no graph is prepared for {num_tokens} tokens",
            found=f"{len(self.prepared)} graphs, for other sizes",
            remedy="call the model with that many tokens once",
        )


def not_copied() -> CommPlanError:
    """Why an optimized model is neither copied nor saved."""
    return CommPlanError(
        "an optimized model can be neither copied nor saved",
        found="its graphs are of this process: they hold process groups and the model's tensors",
        remedy="copy or save the model, which is its attribute .original, or its state_dict(), and "
        "optimize again where it is to run",
    )


def _replicated(prepared: GuardedGraph, arguments: Arguments) -> dict[str, torch.Tensor]:
    pairs = zip(prepared.captured.arguments, arguments.leaves, strict=True)
    return {name: leaf for name, leaf in pairs if name in prepared.replicated}
