"""Record a model in one pass: its own forward runs once, on stand-ins for its tensors.

The graph is the one that ``torch.export`` and ``run_decompositions({})`` give, at a fraction of the
time. What the recorder does not follow stops it, with a reason, before anything is returned.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from compiler.capture.export_errors import model_line
from compiler.capture.functionalize import FunctionalGraph, NotRecordedError, one_line
from compiler.capture.lift_state import LiftedGraph, State, StateKind, placeholder_name, unused
from compiler.capture.op_memo import Memo
from compiler.capture.recorder import Recorder
from compiler.capture.trace import TensorCall, Traced, size_range
from compiler.errors import CommPlanError
from compiler.ir.torch_logging import FAKE_TENSORS, unlogged


@dataclass
class Shared:
    """What recordings of one model as several ranks have in common; empty before the first.

    Attributes:
        memo: what is known of ops and types.
        call: shape, strides, type and device of each tensor argument.
        fakes: the arguments as fake tensors.
    """

    memo: Memo | None = None
    call: tuple[Any, ...] = ()
    fakes: list[torch.Tensor] = field(default_factory=list)

    def arguments(self, tensors: list[torch.Tensor]) -> tuple[Memo, list[torch.Tensor]]:
        """The memo, and fake tensors whose sizes of two and more are symbolic."""
        call = tuple((t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in tensors)
        if self.memo is None or self.call != call:
            from torch.fx.experimental.symbolic_shapes import ShapeEnv

            mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True, export=True)
            mode.cache_enabled = False  # the memo is one
            self.memo, self.call = Memo(mode), call
            self.fakes = [_fake(mode, i, tensor) for i, tensor in enumerate(tensors)]
        return self.memo, self.fakes


def _fake(mode: FakeTensorMode, i: int, tensor: torch.Tensor) -> torch.Tensor:
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    sizes = [DimDynamic.DYNAMIC if n >= 2 else DimDynamic.STATIC for n in tensor.shape]
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(tensor, source=ConstantSource(f"t{i}"), symbolic_context=context)


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    shared: Shared | None = None,
) -> Traced:
    """Record ``model`` as it runs on this rank; sizes of two and more are symbolic.

    Args:
        model: the model. Its DTensors are recorded as their local tensors.
        args: as in ``capture``.
        kwargs: as in ``capture``.
        shared: what to take from, and leave for, recordings as other ranks.

    Raises:
        NotRecordedError: the recorder does not follow what the model does; the model is as it was.
        CaptureError: the call or a result cannot be captured by any tracer.
    """
    call = TensorCall.of(model, args, kwargs)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(unlogged(FAKE_TENSORS))
            return _Recording(call, shared or Shared()).traced()
    except (NotRecordedError, CommPlanError):
        raise
    except Exception as error:
        raise NotRecordedError(one_line(error), model_line(error)) from error


class _Recording:
    """One run of a model under the recorder."""

    def __init__(self, call: TensorCall, shared: Shared) -> None:
        self.call = call
        self.memo, self.fakes = shared.arguments(call.tensors)
        self.graph = FunctionalGraph(sys._getframe(), self.memo.symint)
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
        """The trace."""
        swaps = self._swaps()
        names = [self._argument(*pair) for pair in zip(self.call.names, self.fakes, strict=True)]
        arguments = [stand_in for stand_in, _ in self.inputs[-len(names) :]]
        results = self._run(swaps, arguments)
        mutations, outputs = self._written()
        indices = range(len(outputs), len(outputs) + len(results))
        nodes = [self.recorder.node(x) for x in results]
        self.graph.graph.output((*outputs, *nodes))
        self._finish()
        state = self.state | self.recorder.constants
        lifted = LiftedGraph(self.graph.graph, state, tuple(names), mutations, tuple(indices))
        return self.call.traced(lifted, self._ranges())

    # ---- inputs

    def _swaps(self) -> list[tuple[dict[str, Any], str, Any, Any]]:
        """Stand-ins for parameters and buffers: table, name, tensor, stand-in."""
        swaps: list[tuple[dict[str, Any], str, Any, Any]] = []
        stand_in_of: dict[int, Any] = {}
        modules = list(self.call.model.named_modules())
        for table_name, kind in (
            ("_parameters", StateKind.PARAMETER),
            ("_buffers", StateKind.BUFFER),
        ):
            for path, module in modules:
                table: dict[str, Any] = vars(module)[table_name]
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in stand_in_of:
                        transient = name in module._non_persistent_buffers_set
                        own = (
                            StateKind.TRANSIENT if transient and table_name == "_buffers" else kind
                        )
                        key = f"{path}.{name}" if path else name
                        stand_in_of[id(tensor)] = self._state_tensor(own, key, tensor)
                    swaps.append((table, name, tensor, stand_in_of[id(tensor)]))
        return swaps

    def _state_tensor(self, kind: StateKind, key: str, tensor: torch.Tensor) -> Any:
        local = tensor._local_tensor.detach() if isinstance(tensor, DTensor) else tensor
        if type(local) not in (torch.Tensor, nn.Parameter):
            raise NotRecordedError(f"{key!r} is a {type(local).__qualname__}")
        state = State(kind, key, local)
        name = unused(placeholder_name(state), self.state)
        self.state[name] = state
        stand_in = self.recorder.placeholder(name, self.memo.type_of(local))
        self.inputs.append((stand_in, local))
        if not isinstance(tensor, DTensor):
            return stand_in
        whole: Any = DTensor(stand_in, tensor._spec, requires_grad=False)  # type: ignore[no-untyped-call]
        whole._is_param = isinstance(tensor, nn.Parameter)
        return whole

    def _argument(self, name: str, fake: torch.Tensor) -> str:
        taken = (*self.state, *(stand_in._value.storage.source for stand_in, _ in self.inputs))
        name = unused(name, taken)
        tensor = self.call.tensors[len(self.inputs) - len(self.state)]
        self.inputs.append((self.recorder.placeholder(name, self.memo.type_of(fake)), tensor))
        return name

    # ---- the run

    def _run(self, swaps: Any, arguments: list[Any]) -> list[Any]:
        model = self.call.model
        recorder = self.recorder
        try:
            for table, name, _, stand_in in swaps:
                table[name] = stand_in
            with ExitStack() as stack:
                stack.enter_context(_attributes_kept(model))
                stack.enter_context(self.memo.mode)
                stack.enter_context(_as_export_traces())
                stack.enter_context(_AsEager())
                stack.enter_context(_compilers_refused(recorder))
                stack.enter_context(_module_paths(self.graph, model))
                stack.enter_context(_sharding_unseen(recorder))
                stack.enter_context(recorder)
                results: list[Any] = self.call.module(*arguments)
        except Exception:
            if recorder.bail is not None:
                raise recorder.bail from None
            raise
        finally:
            for table, name, tensor, _ in swaps:
                table[name] = tensor
        if recorder.bail is not None:  # the model caught it, and took another way
            raise recorder.bail
        if any(isinstance(x, DTensor) for x in results):
            raise NotRecordedError("a result is a DTensor")
        return results

    # ---- the graph

    def _written(self) -> tuple[dict[int, str], list[fx.Node]]:
        """Outputs that are written back: index -> placeholder, and the nodes."""
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

    def _ranges(self) -> dict[str, tuple[int, int | None]]:
        env = self.memo.env
        symbols = dict.fromkeys(map(env.replace, self.graph.sources))
        return {str(s): size_range(env.bound_sympy(s)) for s in symbols if s.is_Symbol}


# ---- what surrounds the run


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Stop, with the attributes of all modules as they were, if any has changed meanwhile."""
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
    """What ``torch.export`` has around a non-strict trace: it decides which path models take."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch._export import non_strict_utils
    from torch._export.utils import _compiling_state_context

    programs: Any = torch.export.exported_program

    # Compositions stay one op; none of them takes gradients, so their arguments are not searched.
    kept, _ = programs._split_decomp_table_to_cia_and_python_decomp({})
    whole = programs.autograd_not_implemented
    programs.autograd_not_implemented = _below_autograd
    with ExitStack() as stack:
        stack.callback(setattr, programs, "autograd_not_implemented", whole)
        stack.enter_context(programs._override_composite_implicit_decomp(kept))
        stack.enter_context(non_strict_utils._NonStrictTorchFunctionHandler())
        stack.enter_context(non_strict_utils._override_builtin_ops())
        stack.enter_context(_compiling_state_context())
        stack.enter_context(enable_python_dispatcher())
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
        """The result of a call as the model gets it without a tracer."""
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
def _compilers_refused(recorder: Recorder) -> Iterator[None]:
    """Within it, ops that trace Python functions, such as ``torch.cond``, stop the recording."""
    whole = torch.compile

    def refuse(*args: Any, **kwargs: Any) -> Any:
        recorder.stop(recorder.graph.bail("an op that traces a function of the model's"))

    setattr(torch, "compile", refuse)  # noqa: B010
    try:
        yield
    finally:
        setattr(torch, "compile", whole)  # noqa: B010


@contextmanager
def _module_paths(graph: FunctionalGraph, model: nn.Module) -> Iterator[None]:
    """Within it, ``graph`` knows which modules of ``model`` run."""
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}
    whole = nn.Module.__call__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if (name := names.get(id(self))) is None:
            return whole(self, *args, **kwargs)
        outer = graph.modules
        graph.modules = {**outer, f"L['self'].{name}": (name, type(self))}
        try:
            return whole(self, *args, **kwargs)
        finally:
            graph.modules = outer

    setattr(nn.Module, "__call__", call)  # noqa: B010
    try:
        yield
    finally:
        setattr(nn.Module, "__call__", whole)  # noqa: B010


@contextmanager
def _sharding_unseen(recorder: Recorder) -> Iterator[None]:
    """Within it, DTensor's computation of global shapes is not recorded."""
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    name = "_propagate_tensor_meta_non_cached"
    whole = getattr(ShardingPropagator, name, None)
    if whole is None:
        yield
        return

    def unseen(*args: Any) -> Any:
        recorder.paused += 1
        try:
            return whole(*args)
        finally:
            recorder.paused -= 1

    setattr(ShardingPropagator, name, unseen)
    try:
        yield
    finally:
        setattr(ShardingPropagator, name, whole)
