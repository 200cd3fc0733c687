"""The mode under which a model's forward is recorded: one node per op, its type from the memo."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NoReturn

import sympy
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from compiler.capture.functionalize import (
    SYMBOLIC,
    FunctionalGraph,
    Metadata,
    NotRecordedError,
    Storage,
    Value,
    View,
    aten,
    one_line,
)  # fmt: skip
from compiler.capture.op_memo import COMPOSITE, Memo, Op, Result
from compiler.capture.trace import CHECKS, State, StateKind
from compiler.errors import CaptureError

PLAIN = frozenset(
    {int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.layout,
     torch.memory_format}
)  # fmt: skip
"""Types of static arguments."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every op into ``graph``; tensors of the model are stand-ins that know their value.

    Attributes:
        memo: types and results that are known.
        graph: the graph under construction.
        constants: placeholder -> tensor that the model's code made.
        bail: why recording stopped: the model may have caught the exception.
        paused: how many computations are under way that are none of the model's.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would cost some microseconds per op

    def __init__(self, memo: Memo, graph: FunctionalGraph, attributes: Mapping[int, str]) -> None:
        """Take a ``memo``, which may know other traces; ``attributes`` names tensors by id."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.memo, self.graph = memo, graph
        self.constants: dict[str, State] = {}
        self.bail: NotRecordedError | CaptureError | None = None
        self.paused = 0
        self._lifted: dict[int, tuple[torch.Tensor, Any]] = {}
        self._attributes = attributes
        self._default = torch.get_default_dtype()

    def placeholder(self, name: str, metadata: Metadata) -> Any:
        """Return a stand-in for a new input."""
        return self.memo.tensor(self.graph.placeholder(name, metadata))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record a call, unless it is DTensor's to take apart or not the model's."""
        if self.paused:
            return func(*args, **kwargs or {})
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        try:
            op = self.memo.op(func)
            if DTensor in types:
                # Asked above DTensor, which then issues local ops; it has no rule for compositions.
                propagator: Any = DTensor._op_dispatcher.sharding_propagator
                if not op.composite or func in propagator.op_strategy_funcs:
                    return NotImplemented
                return self._decomposed(func, args, kwargs or {})
            if op.composite and not op.kept:
                return self._decomposed(func, args, kwargs or {})
            if op.kind == "number" and torch.Tag.nondeterministic_seeded not in func.tags:
                return func(*args, **kwargs or {})
            return self._recorded(func, op, args, kwargs or {})
        except (NotRecordedError, CaptureError) as error:
            if isinstance(error, NotRecordedError) and not error.where:
                error = self.graph.bail(error.reason)
            self.stop(error)

    def stop(self, error: NotRecordedError | CaptureError) -> NoReturn:
        """Raise ``error``, which counts even if the model catches it."""
        self.bail = self.bail or error
        raise self.bail from None

    def _decomposed(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        with self:
            return func._op_dk(COMPOSITE, *args, **kwargs)

    def _recorded(self, func: Any, op: Op, args: tuple[Any, ...], kwargs: Any) -> Any:
        # What an op depends on besides its arguments.
        state = (
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        )  # fmt: skip
        key: list[Any] = [func, state]
        args = tuple([self._operand(x, key) for x in args])
        kwargs = {name: self._operand(x, key, name) for name, x in kwargs.items()}
        key_of_call = tuple(key)
        if (result := self.memo.results.get(key_of_call)) is None:
            result = self.memo.results[key_of_call] = self._result(func, op, args, kwargs)
        if result.operand is not None:
            return args[result.operand]
        if func in CHECKS:
            return None
        inputs = tuple([self.node(x) for x in args])
        named = {name: self.node(x) for name, x in kwargs.items()}
        node = self.graph.call(op.target, inputs, named, result.val)
        if op.kind == "write":
            return self._written(args[0], node, result)
        outputs = [
            None if one is None else self._output(i, one, node, inputs, named, args, result)
            for i, one in enumerate(result.types)
        ]
        return outputs[0] if result.container is None else result.container(outputs)

    def _written(self, tensor: Any, node: Any, result: Result) -> Any:
        value: Value = tensor._value
        (new,) = result.types
        assert new is not None, "a write has one result"
        if new.dtype is not value.metadata.dtype:
            dtype = {"dtype": value.metadata.dtype}
            node = self.graph.call(aten._to_copy.default, (node,), dtype, value.metadata.val)
        self.graph.write(value, node)
        return tensor

    def _output(
        self, i: int, one: Metadata, node: Any, inputs: Any, named: Any, args: Any, result: Result
    ) -> Any:
        func = node.target
        several = result.container is not None
        own = self.graph.call(operator.getitem, (node, i), {}, one.val) if several else node
        if not result.view:
            storage = Storage(own)
            if result.shares:
                why = f"a write to memory that {func} shares without saying so"
                for shared in (storage, *(x._value.storage for x in _tensors(args))):
                    shared.frozen = why
            return self.memo.tensor(Value(storage, one, own))
        base: Value = args[0]._value
        index = i if several else None
        view = View(func, inputs[1:], named, base.metadata, one, result.val, index)
        views, version = (*base.views, view), base.storage.version
        return self.memo.tensor(Value(base.storage, one, own, views, version))

    # ---- arguments

    def _operand(self, x: Any, key: list[Any], name: str = "") -> Any:
        """Return ``x``, constants replaced by stand-ins, and extend the key of a result."""
        if name:
            key.append(name)
        kind = type(x)
        if kind in PLAIN:
            key += (kind, x)
            return x
        if isinstance(x, torch.Tensor):
            x = x if hasattr(x, "_value") else self._constant(x)
            key.append(x._value.metadata.number)
            return x
        if kind is torch.SymInt:
            key += (kind, x.node.expr)
            return x
        if kind in (list, tuple):
            key += (kind, len(x))
            return kind([self._operand(one, key) for one in x])
        raise NotRecordedError(f"an argument of type {kind.__module__}.{kind.__qualname__}")

    def node(self, x: Any) -> Any:
        """Return ``x`` as an argument of a node."""
        if isinstance(x, torch.Tensor):
            return self.graph.read(x._value)  # type: ignore[attr-defined]
        if isinstance(x, SYMBOLIC):
            return self.graph.size(x)
        return type(x)([self.node(one) for one in x]) if isinstance(x, list | tuple) else x

    def _constant(self, tensor: torch.Tensor) -> Any:
        """Return the stand-in for a tensor with data that the model's code made or holds."""
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        if type(tensor) not in (torch.Tensor, nn.Parameter) or wrapped:
            raise NotRecordedError(
                f"a tensor of unknown origin, of type {type(tensor).__qualname__}"
            )
        if id(tensor) not in self._lifted:
            key = self._attributes.get(id(tensor), f"lifted_tensor_{len(self.constants)}")
            state = State(StateKind.CONSTANT, key, tensor)
            stand_in = self.placeholder(
                state.unused_name(self.constants), self.memo.type_of(tensor.detach())
            )
            stand_in._value.storage.frozen = "a write to a constant"
            self.constants[str(stand_in._value.storage.source)] = state
            self._lifted[id(tensor)] = tensor, stand_in
        return self._lifted[id(tensor)][1]

    # ---- results

    def _result(self, func: Any, op: Op, args: tuple[Any, ...], kwargs: Any) -> Result:
        """Return what the op gives, from running it on fake tensors."""
        if op.target is None or op.kind not in ("pure", "view", "write"):
            raise NotRecordedError(op.kind)
        try:
            out = op.target(*args, **kwargs)
        except Exception as error:
            raise NotRecordedError(f"{func}: {one_line(error)}") from error
        if func in CHECKS and out is None:
            return Result(())
        self._check_default_dtype(func, out, op, args, kwargs)
        several = isinstance(out, list | tuple)
        outs = list(out) if several else [out]
        if not all(one is None or isinstance(one, torch.Tensor) for one in outs):
            raise NotRecordedError(f"{func}, which gives a {type(out).__name__}")
        if not several and (op.composite or op.kind == "view"):
            same = next((i for i, x in enumerate(args) if x is out), None)
            if same is not None:
                return Result((), operand=same)
        types = tuple(None if one is None else self.memo.type_of(one) for one in outs)
        if op.kind == "write":
            self._check_write(func, args[0], types)
        val = [one and one.val for one in types]
        container = type(out) if several else None
        shares = _shares(outs, _tensors((args, *kwargs.values())))
        view = op.kind == "view" and shares
        return Result(
            types, container, container(val) if container else val[0], view=view,
            shares=shares and not view and op.kind != "write",
        )  # fmt: skip

    def _check_write(self, func: Any, operand: Any, types: tuple[Metadata | None, ...]) -> None:
        """Check that the first operand can take what is written to it."""
        (new,) = types
        written = operand._value.metadata if hasattr(operand, "_value") else None
        final = self.memo.env.replace
        shapes = [[final(sympy.sympify(x)) for x in one.shape] for one in (new, written) if one]
        if new is None or written is None or shapes[0] != shapes[1]:
            raise NotRecordedError(f"{func} of another shape than what it writes to")
        if not torch.can_cast(new.dtype, written.dtype):
            raise NotRecordedError(f"{func} writes {new.dtype} to {written.dtype}")

    def _check_default_dtype(
        self, func: Any, out: Any, op: Op, args: tuple[Any, ...], kwargs: Any
    ) -> None:
        """Refuse an op whose type depends on a default that the model's code sets."""
        own = torch.get_default_dtype()
        if own is self._default:
            return
        try:
            torch.set_default_dtype(self._default)
            again = op.target(*args, **kwargs)
        finally:
            torch.set_default_dtype(own)
        if [x.dtype for x in _tensors(out)] != [x.dtype for x in _tensors(again)]:
            raise CaptureError(
                "forward changes the default dtype, on which a result depends",
                where=self.graph.bail("").where,
                found=f"{func} under default {own}; outside of forward it is {self._default}",
                remedy="pass dtype= to the op",
            )


def _tensors(tree: Any) -> list[Any]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [x for one in tree for x in _tensors(one)] if isinstance(tree, list | tuple) else []


def _shares(outs: list[Any], operands: list[Any]) -> bool:
    """Return whether a result shares memory with an operand."""
    memory = {x.untyped_storage()._cdata for x in operands}
    return any(one.untyped_storage()._cdata in memory for one in outs if one is not None)
