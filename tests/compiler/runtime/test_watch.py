"""Which changes of a model a watch notices, which it calls harmless, and what it costs nothing."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compiler.capture.python_reads import Reads
from compiler.capture.state_owners import Change
from compiler.errors import CommPlanError, DivergenceError
from compiler.runtime import watch as watching
from compiler.runtime.watch import UNCHANGED, Reason, Watch, Watched, compare_reasons

FACTOR = 1.0
SETTINGS = {"offset": 0.0}
SPACE = types.ModuleType("a_module_of_the_user")
SPACE.GAIN = 1.0  # type: ignore[attr-defined]
X = torch.linspace(-1, 1, 24).reshape(3, 8)


class Config:
    def __init__(self) -> None:
        self.scale, self.rope, self.note = 1.0, {"theta": 1e4}, "unread"


@dataclass(frozen=True, slots=True)
class Slotted:
    gain: float = 1.0


class Norm(nn.Module):
    eps = 1e-6

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def mean(self, x: Tensor) -> Tensor:
        return x.pow(2).mean(-1, True)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(self.mean(x) + self.eps) * self.weight


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm, self.up, self.drop = Norm(), nn.Linear(8, 8), nn.Dropout(0.0)
        self.config, self.on, self.scaling = config, True, {"default": 1.0}
        self.steps, self.names, self.pair = [1.0, 2.0], ["default"], (Config(),)
        self.plain, self.never_read = torch.ones(8), 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x
        y = self.drop(self.up(self.norm(x))) * self.scaling[self.names[0]] * self.plain
        return x + y * self.steps[0] * self.config.scale * self.pair[0].scale


def scaled(x: Tensor) -> Tensor:
    return x * FACTOR * SPACE.GAIN + SETTINGS["offset"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = Config()
        self.layers = nn.ModuleList(Layer(self.config) for _ in range(2))
        self.register_buffer("table", torch.ones(8))
        self.calls, self.slotted = 0, Slotted()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return scaled(x) * self.table * self.slotted.gain


def recorded(model: nn.Module) -> Reads:
    reads = Reads(model)
    with torch.no_grad(), reads.recording():
        model(X)
    reads.settle()
    return reads


def watched(model: nn.Module) -> tuple[Watch, Watched]:
    watch = Watch()
    return watch, watch.add(recorded(model))


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class OtherNorm(Norm):
    pass


def first(m: Model) -> Any:
    return m.layers[0]


def set_global(value: float) -> None:
    globals()["FACTOR"] = value


def twice(*args: Any) -> Any:
    return args[-1] * 2


def patch(target: Any, name: str) -> Callable[[], None]:
    before = getattr(target, name)
    setattr(target, name, lambda *args: before(*args) * 2)
    return lambda: setattr(target, name, before)


def hook_all(m: Model) -> Callable[[], None]:
    return nn.modules.module.register_module_forward_hook(twice).remove


CHANGES: dict[str, Callable[[Any], object]] = {
    "layers.0.on changed from True to False": lambda m: setattr(first(m), "on", False),
    "layers.0.norm.eps was added": lambda m: setattr(first(m).norm, "eps", 0.5),
    "layers.0.on was removed": lambda m: delattr(first(m), "on"),
    "layers.0.on changed from True to 0": lambda m: first(m).__dict__.update(on=0),
    "layers.0.up was replaced": lambda m: setattr(first(m), "up", Twice()),
    "layers.1 was removed": lambda m: m.layers.__delitem__(1),
    "layers.2 was added": lambda m: m.layers.append(Layer(m.config)),
    "layers.3 was added": lambda m: m.layers._modules.update({"3": Layer(m.config)}),
    "layers.0.forward was added": lambda m: patch(first(m), "forward"),
    "{here}.Layer.forward was replaced": lambda m: patch(Layer, "forward"),
    "{here}.Norm.mean was replaced": lambda m: patch(Norm, "mean"),
    "{here}.scaled was replaced": lambda m: patch(__import__(__name__, fromlist="x"), "scaled"),
    "{here}.FACTOR changed from 1.0 to 2.0": lambda m: (
        set_global(2.0) or functools.partial(set_global, 1.0)
    ),
    "{here}.SETTINGS['offset'] changed from 0.0 to 2.0": lambda m: (
        SETTINGS.update(offset=2.0) or functools.partial(SETTINGS.update, offset=0.0)
    ),
    "a_module_of_the_user.GAIN changed from 1.0 to 2": lambda m: (
        setattr(SPACE, "GAIN", 2) or functools.partial(setattr, SPACE, "GAIN", 1.0)
    ),
    "a hook of layers.0 was added": lambda m: first(m).register_forward_hook(twice),
    "a hook of layers.1 was added": lambda m: m.layers[1].register_forward_pre_hook(twice),
    "a hook of all modules was added": hook_all,
    "the class of layers.0.norm changed from Norm to OtherNorm": lambda m: setattr(
        first(m).norm, "__class__", OtherNorm
    ),
    "the class of layers.0.up changed from Linear to ParametrizedLinear": lambda m: (
        parametrize.register_parametrization(first(m).up, "weight", Twice())
    ),
    "layers.0.up.weight changed from float32[8, 8] on cpu to float32[4, 8] on cpu": lambda m: (
        setattr(first(m).up, "weight", nn.Parameter(torch.ones(4, 8)))
    ),
    "layers.0.up.bias changed from float32[8] on cpu to None": lambda m: first(
        m
    ).up._parameters.update(bias=None),
    "layers.0.norm.weight changed from float32[8] on cpu to float64[8] on cpu": lambda m: (
        m.double() and None
    ),
    "layers.0.drop.training changed from True to False": lambda m: m.eval() and None,
    "layers.0.plain was replaced": lambda m: setattr(first(m), "plain", torch.zeros(8)),
    "layers.0.config.scale changed from 1.0 to -0.0": lambda m: setattr(m.config, "scale", -0.0),
    "layers.0.scaling['default'] changed from 1.0 to 4.0": lambda m: first(m).scaling.update(
        default=4.0
    ),
    "layers.0.steps[0] changed from 1.0 to 3.0": lambda m: first(m).steps.__setitem__(0, 3.0),
    "layers.0.steps[2] was added": lambda m: first(m).steps.append(3.0),
    "layers.0.pair[0].scale changed from 1.0 to 2.0": lambda m: setattr(
        first(m).pair[0], "scale", 2.0
    ),
}


@pytest.mark.parametrize("text", CHANGES)
def test_changes_of_what_was_read_are_noticed_and_named(text: str) -> None:
    model = Model()
    watch, graph = watched(model)
    assert watch.unchanged()
    with torch.no_grad():
        model(X)
    assert watch.unchanged(), "a call of the model changes nothing"
    undo = CHANGES[text](model)
    try:
        assert not watch.unchanged()
        watch.update()
        assert watch.state == ()
        assert text.format(here=__name__) in [
            str(change) for listed in graph.changed.values() for change in listed
        ]
        assert watch.unchanged(), "armed anew"
    finally:
        if callable(undo) and not isinstance(undo, nn.Module):
            undo()


def test_all_tensors_converted_through_data() -> None:
    model = Model()
    watch, graph = watched(model)
    for x in (*model.parameters(), *model.buffers()):
        x.data = x.data.double()
    assert not watch.unchanged()
    watch.update()
    assert "layers.0.norm.weight" in graph.reason.names


def move_a_parameter(m: Model) -> None:
    first(m).up.weight = nn.Parameter(first(m).up.weight.detach() * 2)


HARMLESS: dict[str, Callable[[Any], object]] = {
    "an attribute that no forward reads": lambda m: setattr(first(m), "never_read", 1),
    "a new attribute": lambda m: setattr(m, "_previous_max_cache_length", 9),
    "an equal constant": lambda m: setattr(m.config, "scale", float("1.0")),
    "an equal list": lambda m: setattr(first(m), "names", ["default"]),
    "a parameter of the same type": move_a_parameter,
    "a buffer of the same type": lambda m: setattr(m, "table", torch.full((8,), 3.0)),
    "weights loaded": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}),
    "a hook of another model": lambda m: nn.Linear(1, 1).register_forward_hook(twice),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_writes_keep_the_graph(name: str) -> None:
    model, refreshed = Model(), list[int]()
    watch = Watch()
    graph = watch.add(recorded(model), refresh=lambda: refreshed.append(1))
    for round_ in range(2):
        HARMLESS[name](model)
        if not watch.unchanged():
            watch.update()
            assert refreshed, "tensors are read again"
        assert (watch.state, graph.reason) == ((0,), UNCHANGED), round_
        assert watch.unchanged()


def test_the_contents_of_an_equal_list_are_watched() -> None:
    model = Model()
    watch, graph = watched(model)
    names = first(model).names = ["default"]
    watch.update()
    names[0] = "other"
    assert not watch.unchanged()
    watch.update()
    assert graph.reason.names == ("layers.0.names[0]",)


def test_a_flag_that_returns_makes_the_graph_valid_again() -> None:
    model = Model()
    watch, _ = watched(model)
    model.eval()
    watch.update()
    watch.add(recorded(model))
    states = []
    for mode in (True, False, True):
        model.train(mode)
        assert not watch.unchanged()
        watch.update()
        states.append(watch.state)
    assert states == [(0,), (1,), (0,)]


def test_training_counts_only_where_it_was_read() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    watch, _ = watched(model)
    model.eval()
    watch.update()
    assert watch.state == (0,)


def test_tied_parameters_must_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    watch, graph = watched(model)
    model[0].weight = nn.Parameter(torch.ones(8, 8))
    watch.update()
    assert graph.reason.text == "0.weight is 1.weight changed from True to False"
    model[1].weight = model[0].weight
    watch.update()
    assert watch.state == (0,)


def test_slots_take_another_tensor_of_their_type() -> None:
    model = Model()
    watch = Watch()
    graph = watch.add(recorded(model), [(vars(first(model)), "plain")])
    first(model).plain = torch.zeros(8)
    watch.update()
    assert graph.is_valid
    first(model).plain = torch.zeros(8, dtype=torch.float64)
    watch.update()
    assert not graph.is_valid


def test_who_lets_go_of_a_module_is_not_made_to_keep_it() -> None:
    model = Model()
    watch, graph = watched(model)
    first(model).on = False
    watch.update()
    assert not graph.releases_state
    del model.layers[1]
    watch.update()
    assert graph.releases_state
    watch.remove(graph)
    assert watch.unchanged()
    assert watch.state == ()


@pytest.fixture(params=["RootGuardManager", "dict_version"])
def _torch_lacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = ("RootGuardManager", "dict_version")
    for name in lacking[: 1 + lacking.index(request.param)]:
        monkeypatch.delattr(watching.guards, name)


@pytest.mark.usefixtures("_torch_lacks")
@pytest.mark.parametrize("text", [t for t in CHANGES if t.startswith("layers.0.o")])
def test_without_the_guards_of_torch(text: str) -> None:
    model = Model()
    watch, graph = watched(model)
    watch.update()
    assert watch.state == (0,)
    CHANGES[text](model)
    assert not watch.unchanged()
    watch.update()
    assert graph.reason.text == text


def test_reasons_are_the_same_on_all_ranks_whatever_moved_first() -> None:
    model = Model()
    watch, graph = watched(model)
    for layer in reversed(model.layers):
        layer.on, layer.scaling["default"] = False, 2.0
        watch.update()
    assert graph.reason.names == tuple(sorted(graph.reason.names))
    assert graph.reason.text.startswith("layers.0.on changed from True to False; layers.0.scaling")
    assert graph.reason.text.endswith(" and 1 more")


class Ranks:
    """Two ranks, of which the other has its answer ready."""

    size, rank = 2, 1

    def __init__(self, answer: Reason | CommPlanError) -> None:
        self.answer = answer

    def gather(self, item: Any) -> list[Any]:
        if isinstance(self.answer, CommPlanError):
            raise self.answer
        return [self.answer, item]


SEEN = Reason(("scale",), str(Change("scale", 1.0, 0.25)))


def test_ranks_that_see_the_same_change_capture_together() -> None:
    compare_reasons(Ranks(UNCHANGED), UNCHANGED)
    compare_reasons(Ranks(Reason(("scale",), "scale changed from 1.0 to 0.5")), SEEN)


def test_ranks_that_see_different_changes_are_refused() -> None:
    with pytest.raises(DivergenceError) as caught:
        compare_reasons(Ranks(UNCHANGED), SEEN)
    assert str(caught.value) == (
        "ranks see different changes of the model\n"
        "  found: rank 0: no change; rank 1: scale changed from 1.0 to 0.25\n"
        "  remedy: change the model alike on all ranks, and before the same call"
    )


def test_a_rank_that_waits_in_vain_says_what_it_saw() -> None:
    absent = CommPlanError("rank 0 did not arrive within 5 s")
    with pytest.raises(DivergenceError, match="rank 1 saw a change of the model") as caught:
        compare_reasons(Ranks(absent), SEEN)
    assert caught.value.found == "scale changed from 1.0 to 0.25; rank 0 did not arrive within 5 s"
    with pytest.raises(CommPlanError) as other:
        compare_reasons(Ranks(absent), UNCHANGED)
    assert other.value is absent
