"""Record a model in one pass: its own forward runs once, on stand-ins for its tensors.

The graph is the one that ``torch.export`` and ``run_decompositions({})`` give, at a fraction of the
time. What the recorder does not follow stops it, with a reason, before anything is returned.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from compiler.capture.export_errors import model_line
from compiler.capture.functionalize import FunctionalGraph, NotRecordedError, one_line
from compiler.capture.model_call import TensorCall, swapped, tensors_of
from compiler.capture.op_memo import Memo
from compiler.capture.recorder import Recorder
from compiler.capture.trace import State, Traced, size_range, unused
from compiler.errors import CommPlanError
from compiler.ir.torch_logging import FAKE_TENSORS, unlogged

Shared = dict[tuple[Any, ...], tuple[Memo, list[torch.Tensor]]]
"""Type of the tensor arguments -> what recordings of one model as several ranks have in common."""


def _shared(shared: Shared, tensors: list[torch.Tensor]) -> tuple[Memo, list[torch.Tensor]]:
    """Return the memo, and fake ``tensors`` whose sizes of two and more are symbolic."""
    call = tuple((t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in tensors)
    if call not in shared:
        from torch._dynamo.source import ConstantSource
        from torch.fx.experimental.symbolic_shapes import (
            DimDynamic,
            ShapeEnv,
            StatelessSymbolicContext,
        )  # fmt: skip

        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True, export=True)
        mode.cache_enabled = False  # the memo is one
        fakes: list[torch.Tensor] = []
        for i, tensor in enumerate(tensors):
            sizes = [DimDynamic.DYNAMIC if n >= 2 else DimDynamic.STATIC for n in tensor.shape]
            context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
            source = ConstantSource(f"t{i}")
            fakes.append(mode.from_tensor(tensor, source=source, symbolic_context=context))
        shared[call] = Memo(mode), fakes
    return shared[call]


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    shared: Shared | None = None,
) -> Traced:
    """Record ``model`` as it runs on this rank, as ``capture`` does; DTensors as local tensors.

    Sizes of two and more are symbolic. Recordings as other ranks take from, and leave for, each
    other what is ``shared``.

    Raises:
        NotRecordedError: the recorder does not follow what the model does; the model is as it was.
        CaptureError: the call or a result cannot be captured by any tracer.
    """
    call = TensorCall(model, args, kwargs)
    try:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            warnings.catch_warnings(action="ignore"),
            unlogged(FAKE_TENSORS),
        ):
            return _Recording(call, Shared() if shared is None else shared).traced()
    except (NotRecordedError, CommPlanError):
        raise
    except Exception as error:
        raise NotRecordedError(one_line(error), model_line(error)) from error


class _Recording:
    """One run of a model under the recorder."""

    def __init__(self, call: TensorCall, shared: Shared) -> None:
        self.call = call
        self.memo, self.fakes = _shared(shared, call.tensors)
        self.graph = FunctionalGraph(self.memo.symint)
        attributes = {
            id(x): f"{path}.{name}" if path else name
            for path, module in call.model.named_modules()
            for name, x in vars(module).items()
            if isinstance(x, torch.Tensor)
        }
        self.recorder = Recorder(self.memo, self.graph, attributes)
        self.state: dict[str, State] = {}
        self.inputs: list[tuple[Any, torch.Tensor]] = []  # stand-in, tensor

    def traced(self) -> Traced:
        """Return the trace."""
        swaps = list(self._stand_ins())
        names: list[str] = []
        for name, fake, tensor in zip(self.call.names, self.fakes, self.call.tensors, strict=True):
            names.append(unused(name, (*self.state, *names)))
            stand_in = self.recorder.placeholder(names[-1], self.memo.type_of(fake))
            self.inputs.append((stand_in, tensor))
        results = self._run(swaps, [stand_in for stand_in, _ in self.inputs[-len(names) :]])
        mutations, outputs = self._written()
        indices = range(len(outputs), len(outputs) + len(results))
        self.graph.graph.output((*outputs, *map(self.recorder.node, results)))
        self._finish()
        env = self.memo.env
        symbols = dict.fromkeys(map(env.replace, self.graph.sources))
        trace = Traced(
            graph=self.graph.graph,
            state=self.state | self.recorder.constants,
            arguments=tuple(names),
            mutations=mutations,
            results=tuple(indices),
            out_spec=self.call.out_spec,
            ranges={str(s): size_range(env.bound_sympy(s)) for s in symbols if s.is_Symbol},
        )
        return self.call.traced(trace)

    def _stand_ins(self) -> Iterator[tuple[dict[str, Any], str, Any]]:
        """Yield what stands for parameters and buffers: table, name in it, stand-in."""
        stand_in_of: dict[int, Any] = {}
        for table, name, state in tensors_of(self.call.model):
            if id(state.tensor) not in stand_in_of:
                stand_in_of[id(state.tensor)] = self._stand_in(state)
            yield table, name, stand_in_of[id(state.tensor)]

    def _stand_in(self, state: State) -> Any:
        tensor, key = state.tensor, state.key
        local = tensor._local_tensor.detach() if isinstance(tensor, DTensor) else tensor
        if type(local) not in (torch.Tensor, nn.Parameter):
            raise NotRecordedError(f"{key!r} is a {type(local).__qualname__}")
        name = state.unused_name(self.state)
        self.state[name] = replace(state, tensor=local)
        stand_in = self.recorder.placeholder(name, self.memo.type_of(local))
        self.inputs.append((stand_in, local))
        if not isinstance(tensor, DTensor):
            return stand_in
        whole: Any = DTensor(stand_in, tensor._spec, requires_grad=False)  # type: ignore[no-untyped-call]
        whole._is_param = isinstance(tensor, nn.Parameter)
        return whole

    def _run(self, swaps: list[tuple[dict[str, Any], str, Any]], arguments: list[Any]) -> list[Any]:
        recorder, model = self.recorder, self.call.model
        try:
            with (
                swapped(swaps), _attributes_kept(model), self.memo.mode, _as_export_traces(),
                _AsEager(), _compilers_refused(recorder), _module_paths(self.graph, model),
                _sharding_unseen(recorder), recorder,
            ):  # fmt: skip
                results = self.call.run(*arguments)
        except Exception:
            if recorder.bail is not None:
                raise recorder.bail from None
            raise
        if recorder.bail is not None:  # the model caught it, and took another way
            raise recorder.bail
        if any(isinstance(x, DTensor) for x in results):
            raise NotRecordedError("a result is a DTensor")
        return results

    def _written(self) -> tuple[dict[int, str], list[fx.Node]]:
        """Return the outputs that are written back: index -> placeholder, and the nodes."""
        memory = [tensor.untyped_storage()._cdata for _, tensor in self.inputs]
        mutations: dict[int, str] = {}
        outputs: list[fx.Node] = []
        for (stand_in, _), own in zip(self.inputs, memory, strict=True):
            storage = stand_in._value.storage
            if storage.version:
                if memory.count(own) > 1:
                    raise NotRecordedError(
                        f"{storage.source!r} is written to, and shares memory with another"
                    )
                mutations[len(outputs)] = str(storage.source)
                outputs.append(self.graph.read(stand_in._value))
        return mutations, outputs

    def _finish(self) -> None:
        graph = self.graph.graph
        for node in reversed(graph.nodes):
            if node.op == "call_function" and not node.users and not node.is_impure():
                graph.erase_node(node)
        env = self.memo.env
        self.graph.settle(lambda expr: env.replace(sympy.sympify(expr)), self.memo.settled())


# ---- what surrounds the run


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Stop if attributes of modules have changed meanwhile, and give them back."""
    before: list[tuple[Any, Any, str]] = []
    for path, module in model.named_modules():
        before.append((vars(module), dict(vars(module)), path))
        before += [
            (x, copy.copy(x), f"{path}.{name}")
            for name, x in vars(module).items()
            if isinstance(x, dict | list | set)
        ]
    changed: list[str] = []
    try:
        yield
    finally:
        for kept, old, path in before:
            if not _same(kept, old):
                changed.append(path)
                kept.clear()
                kept.extend(old) if isinstance(kept, list) else kept.update(old)
    if changed:
        raise NotRecordedError(f"forward assigns to an attribute of {changed[0] or 'the model'!r}")


def _same(now: Any, old: Any) -> bool:
    if isinstance(now, dict):
        return now.keys() == old.keys() and all(now[key] is old[key] for key in old)
    if isinstance(now, list):
        return len(now) == len(old) and all(map(lambda a, b: a is b, now, old))
    return bool(now == old)


@contextmanager
def _as_export_traces() -> Iterator[None]:
    """Enter what ``torch.export`` has around a trace: it decides which path models take."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch._export import non_strict_utils
    from torch._export.utils import _compiling_state_context

    programs: Any = torch.export.exported_program

    # Compositions stay one op; none of them takes gradients, so their arguments are not searched.
    kept, _ = programs._split_decomp_table_to_cia_and_python_decomp({})
    with (
        _patched(programs, "autograd_not_implemented", lambda _: _below_autograd),
        programs._override_composite_implicit_decomp(kept),
        non_strict_utils._NonStrictTorchFunctionHandler(),
        non_strict_utils._override_builtin_ops(),
        _compiling_state_context(),
        enable_python_dispatcher(),
    ):
        yield


def _below_autograd(op: Any, deferred_error: bool = True) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args, **kwargs)

    return run


class _AsEager(TorchFunctionMode):
    """Undoes what tracing changes in the model's calls."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return the result of a call as the model gets it without a tracer."""
        named = kwargs or {}
        if func is nn.functional.dropout and _keeps_all(*args, **named):
            return args[0]  # itself: traced, it is a copy, and writes to one miss the other
        if torch._C._is_any_autocast_enabled():
            with torch._C._DisablePythonDispatcher():  # compositions cast what they consist of
                return func(*args, **named)
        return func(*args, **named)


def _keeps_all(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> bool:
    return p == 0 or not training


@contextmanager
def _patched(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Wrap what ``owner`` has by that name."""
    original = getattr(owner, name)
    setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _compilers_refused(recorder: Recorder) -> AbstractContextManager[None]:
    """Stop the recording at ops that trace Python functions, such as ``torch.cond``."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        recorder.stop(recorder.graph.bail("an op that traces a function of the model's"))

    return _patched(torch, "compile", lambda _: refuse)


def _module_paths(graph: FunctionalGraph, model: nn.Module) -> AbstractContextManager[None]:
    """Tell ``graph`` which modules of ``model`` run."""
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}

    def wrap(original: Any) -> Callable[..., Any]:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if (name := names.get(id(self))) is None:
                return original(self, *args, **kwargs)
            outer = graph.modules
            graph.modules = {**outer, f"L['self'].{name}": (name, type(self))}
            try:
                return original(self, *args, **kwargs)
            finally:
                graph.modules = outer

        return call

    return _patched(nn.Module, "__call__", wrap)


def _sharding_unseen(recorder: Recorder) -> AbstractContextManager[None]:
    """Leave out DTensor's computation of global shapes."""
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    def wrap(original: Any) -> Callable[..., Any]:
        def unseen(*args: Any) -> Any:
            recorder.paused += 1
            try:
                return original(*args)
            finally:
                recorder.paused -= 1

        return unseen

    return _patched(ShardingPropagator, "_propagate_tensor_meta_non_cached", wrap)
