"""The optimized model used like the model; changed after its first call, it is captured anew."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from compiler import CommPlanError, optimize_allreduce
from compiler.capture.fake_ranks import fake_process_group
from compiler.runtime.module import OptimizedModule
from compiler.runtime.view import OptimizedView

X = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    with fake_process_group(0, 2):
        yield


class Model(nn.Module):
    """One sum over the ranks."""

    kind = "small"

    def __init__(self) -> None:
        super().__init__()
        self.config, self.scale, self.drop = {"hidden": 4}, 2.0, nn.Dropout(0.0)
        self.up = nn.Linear(4, 4)
        self.requires_grad_(False)

    def forward(self, x: Tensor, *, bias: float = 0.0) -> Tensor:
        y = self.up(x)
        dist.all_reduce(y)
        return self.drop(y) * self.scale + bias

    def generate(self, x: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            x = self(x)
        return x


def views(model: nn.Module) -> Any:
    view = optimize_allreduce(model)
    assert isinstance(view, OptimizedView)
    return view


def close(view: Any, model: nn.Module) -> bool:
    return torch.allclose(view(X), model(X))


def test_a_view_is_an_instance_of_the_models_class_over_its_attributes() -> None:
    model = Model()
    view = views(model)
    assert isinstance(view, Model)
    assert type(view).__name__ == "Model"
    assert view.kind == "small"
    assert view.config is model.config
    assert view.original is model
    assert list(view.state_dict()) == list(model.state_dict())
    assert view.up.weight is model.up.weight
    assert inspect.signature(view.forward) == inspect.signature(model.forward)
    assert inspect.signature(type(view).forward) == inspect.signature(Model.forward)
    assert type(model) is Model
    assert "forward" not in vars(model)


def test_methods_of_the_model_run_graphs() -> None:
    model = Model()
    view = views(model)
    assert torch.allclose(view.generate(X, 2), model.generate(X, 2))
    assert torch.equal(view.forward(X), view(X))
    assert len(view.prepared) == len(view.reports) == 1
    assert view.report.before.all_reduces == 1
    assert isinstance(view.graph_module(3), fx.GraphModule)
    assert view.prepare_call(X) is view.prepared[0]


def test_modes_and_conversions_reach_the_model() -> None:
    model = Model()
    view = views(model)
    view(X)
    assert view.eval() is view
    assert not model.training
    view.to(torch.float64)
    assert model.up.weight.dtype is torch.float64
    got = view(X.double())
    assert got.dtype is torch.float64
    assert torch.allclose(got, model(X.double()))


@pytest.mark.parametrize(
    "use",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda view: torch.save(view, io.BytesIO())],
)
def test_views_are_neither_copied_nor_saved(use: Callable[[object], object]) -> None:
    view = views(Model())
    with pytest.raises(CommPlanError, match="can be neither copied nor saved"):
        use(view)
    assert type(copy.deepcopy(view.original)) is Model
    with pytest.raises(CommPlanError, match="the model is optimized already"):
        optimize_allreduce(view)


def test_a_forward_of_the_instance_is_what_runs_and_may_take_other_arguments() -> None:
    model: Any = Model()
    view = views(model)
    view(X)
    model.forward = lambda x: Model.forward(model, x) + 1
    assert close(view, model)
    assert view.report.remarks[-1].reason == "captured anew: forward was added"
    model.forward = lambda y, z=1.0: Model.forward(model, y) * z
    assert torch.allclose(view(y=X, z=3.0), model(X, 3.0))
    del model.forward
    assert close(view, model)
    assert view.optimized.captures == 3, "the first graph is right again"
    with pytest.raises(CommPlanError, match="forward of an optimized model cannot be replaced"):
        view.forward = model.forward


def test_changes_are_captured_anew_and_changes_back_are_not() -> None:
    model = Model()
    view = views(model)
    view(X)
    model.scale = 0.25
    assert close(view, model)
    reasons = [remark.reason for remark in view.report.remarks]
    assert "captured anew: scale changed from 2.0 to 0.25" in reasons
    model.scale = 2.0
    assert close(view, model)
    model.up.weight = nn.Parameter(torch.ones(4, 4), requires_grad=False)
    assert close(view, model)
    assert view.optimized.captures == 2


def test_graphs_that_keep_released_modules_alive_are_dropped() -> None:
    model = Model()
    view = views(model)
    view(X)
    model.up = nn.Linear(4, 4).requires_grad_(False)
    assert close(view, model)
    assert (len(view.prepared), view.optimized.captures) == (1, 2)
    assert view.report.remarks[-1].reason == "captured anew: up was replaced"


def test_who_changes_at_every_call_is_told_and_does_not_grow_without_end() -> None:
    model = Model()
    view = views(model)

    def change() -> bool:
        model.scale += 1
        return close(view, model)

    with pytest.warns(UserWarning, match="captured anew three times because of scale"):
        assert all(change() for _ in range(12))
    assert len(view.prepared) == 9, "the present one, and eight of former states"


def hook(*args: Any) -> Any:
    return args[-1] * 2


@pytest.mark.parametrize("where", ["instance", "all", "class"])
def test_compilers_see_hooks_and_classes_that_change(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    model, graphs = Model(), list[fx.GraphModule]()

    def backend(graph: fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    view = views(model)
    run = torch.compile(view, backend=backend)
    with torch.no_grad():
        assert close(run, model)
        if where == "class":
            before = Model.forward
            monkeypatch.setattr(Model, "forward", lambda self, x: before(self, x) * 2)
            remove = monkeypatch.undo
        elif where == "instance":
            remove = model.register_forward_hook(hook).remove
        else:
            handle = nn.modules.module.register_module_forward_hook(
                lambda m, *rest: hook(*rest) if type(m) is Model else None
            )
            remove = handle.remove
        want = model(X)
        got = view(X) if where == "all" else run(X)  # the compiler's own module has the hook, too
        remove()
        assert torch.allclose(got, want)
        assert close(run, model)
    assert len(graphs) == (1 if where == "all" else 2)


def test_compiling_a_view_compiles_its_graphs() -> None:
    torch._dynamo.reset()
    model, graphs = Model(), list[fx.GraphModule]()
    view = views(model)
    view.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    with torch.no_grad():
        assert close(view, model)
    assert len(graphs) == 1
    assert model._compiled_call_impl is None


class Named(Model):
    def __init__(self) -> None:
        super().__init__()
        self.report, self.original = "quarterly", nn.Linear(1, 1)

    @property
    def prepared(self) -> str:
        return "well"


def test_names_of_the_model_come_first_and_that_is_said() -> None:
    with pytest.warns(UserWarning, match="original, prepared, report of the optimized model are"):
        view = views(Named())
    assert (view.report, view.prepared) == ("quarterly", "well")
    view(X)
    assert view.optimized.report.before.all_reduces == 1
    model: Any = Model()
    model.optimized = 1
    with pytest.raises(CommPlanError, match="an attribute named 'optimized'"):
        optimize_allreduce(model)


class Slotted(Model):
    __slots__ = ("gain",)

    def __init__(self) -> None:
        super().__init__()
        self.gain = 3.0


class Registry(type):
    members: list[str] = []  # noqa: RUF012

    def __init__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> None:
        super().__init__(name, bases, space)
        cls.members.append(name)


class Registered(Model, metaclass=Registry):
    def __init_subclass__(cls, *, label: str) -> None:
        raise AssertionError("a view is not one more class of models")

    def __new__(cls, *args: Any) -> Registered:
        assert args, "made of something"
        return super().__new__(cls)

    def __init__(self, _: int) -> None:
        super().__init__()


def test_slots_and_classes_with_rules_of_their_own() -> None:
    model = Slotted()
    view = views(model)
    assert view.gain == 3.0
    view.gain = 4.0
    assert model.gain == 4.0
    registered = Registered(1)
    assert isinstance(views(registered), Registered)


class Final(type):
    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> Any:
        if any(type(base) is cls for base in bases):
            raise TypeError("a final class")
        return super().__new__(cls, name, bases, space)


class Sealed(Model, metaclass=Final):
    pass


def test_where_no_view_can_be_made_there_is_a_module_and_a_warning() -> None:
    model = Sealed()
    with pytest.warns(UserWarning, match="can be called, and is not a Sealed: a final class"):
        run = optimize_allreduce(model)
    assert isinstance(run, OptimizedModule)
    assert close(run, model)


def test_graphs_have_no_view() -> None:
    program = torch.export.export(Model(), (X,), strict=False)
    assert isinstance(optimize_allreduce(program), OptimizedModule)


class Compiling(Model):
    def get_compiled_call(self, compile_config: object) -> Any:
        return torch.compile(self.__call__)


def test_generation_does_not_compile_a_view_by_itself() -> None:
    view = views(Compiling())
    assert view.get_compiled_call(None).__func__ is OptimizedView.__call__
    assert not hasattr(views(Model()), "get_compiled_call")
