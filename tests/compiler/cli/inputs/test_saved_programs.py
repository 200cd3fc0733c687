"""Nothing in a ``.pt2`` file is run: what PyTorch's reader would run is planted, and refused."""

import copy
import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compiler.cli.inputs.saved_programs import read_program
from compiler.errors import CommPlanError

Parts = dict[str, bytes]


class Plants:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 4), torch.ones(4)

    def forward(self, x: torch.Tensor, *, parts: dict[str, torch.Tensor]) -> Any:
        return {"y": self.linear(x) * self.scale + parts["a"]}, x.shape[0] * 2


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The parts of a saved program, by their names."""
    path = tmp_path_factory.mktemp("saved") / "model.pt2"
    program = torch.export.export(
        Model(),
        (torch.ones(6, 4),),
        {"parts": {"a": torch.ones(4)}},
        dynamic_shapes={"x": {0: torch.export.Dim("rows", min=2)}, "parts": {"a": None}},
    )
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, parts: Parts, folder: str = "model/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(folder + name, content)
    return path


def as_payload(kind: str, name: str, use_pickle: bool = True) -> Callable[[Parts, bytes], None]:
    """A pickle in the place of the first weight or constant."""

    def plant(parts: Parts, evil: bytes) -> None:
        config = json.loads(parts[f"data/{kind}/model_{kind}_config.json"])
        payload = next(iter(config["config"].values()))
        payload |= {"path_name": name, "use_pickle": use_pickle}
        parts[f"data/{kind}/model_{kind}_config.json"] = json.dumps(config).encode()
        parts[f"data/{kind}/{name}"] = evil

    return plant


def as_part(name: str) -> Callable[[Parts, bytes], None]:
    return lambda parts, evil: parts.update({name: evil})


def in_json(change: Callable[[dict[str, Any], str], None]) -> Callable[[Parts, bytes], None]:
    """A change of the graph, which gets code that leaves the mark."""

    def plant(parts: Parts, evil: bytes) -> None:
        model = json.loads(parts["models/model.json"])
        change(model, evil.decode())
        parts["models/model.json"] = json.dumps(model).encode()

    return plant


def first_input(model: dict[str, Any], name: str) -> None:
    text = json.dumps(model).replace('"p_linear_weight"', json.dumps(name))
    model.update(json.loads(text))


def expression(model: dict[str, Any], code: str) -> None:
    size = model["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]
    size["as_expr"]["expr_str"] = code


def target(model: dict[str, Any], name: str) -> None:
    node = model["graph_module"]["graph"]["nodes"][0]
    node["target"] = name


def specification(model: dict[str, Any], code: str) -> None:
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("parts", code)


def imported(model: dict[str, Any], module: str) -> None:
    context = {"default_factory_module": module, "default_factory_name": "x", "dict_context": []}
    spec = [1, {"type": "collections.defaultdict", "context": context, "children_spec": []}]
    model["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(spec)


PICKLES = {
    "sample inputs": as_part("data/sample_inputs/model.pt"),
    "weights in the old form": as_part("data/weights/model.pt"),
    "constants in the old form": as_part("data/constants/model.pt"),
    "a weight": as_payload("weights", "weight_0"),
    "a constant": as_payload("constants", "tensor_0"),
    "a script object": as_payload("constants", "custom_obj_0", use_pickle=False),
    "an opaque object": as_payload("constants", "opaque_obj_0", use_pickle=False),
}
CODE = {
    "a size": in_json(expression),
    "an attribute in a size": in_json(lambda model, _: expression(model, "Integer(1).func")),
    "the name of an input": in_json(lambda model, code: first_input(model, f"x={code}")),
    "a key of keyword arguments": in_json(lambda model, code: specification(model, f"x={code}")),
    "a function of a library": in_json(lambda model, _: target(model, "torch.os.system")),
    "a method of an op": in_json(lambda model, _: target(model, "torch.ops.aten.__init__.x")),
    "a call by name": in_json(lambda model, _: target(model, "_operator.methodcaller")),
    "a module to import": in_json(lambda model, _: imported(model, "antigravity")),
    "compiled code": as_part("data/aotinductor/model/model.so"),
}


def refused(path: Path) -> str:
    with pytest.raises(CommPlanError) as caught:
        read_program(path)
    return str(caught.value)


WHAT = "the program holds what would run when it is read"


@pytest.mark.parametrize("place", PICKLES)
@pytest.mark.parametrize("form", ["torch.save", "pickle"])
def test_pickles(saved: Parts, tmp_path: Path, place: str, form: str) -> None:
    parts, mark = copy.copy(saved), tmp_path / "mark"
    evil = tmp_path / "evil.pt"
    if form == "pickle":
        evil.write_bytes(pickle.dumps(Plants(mark)))
    else:
        torch.save(Plants(mark), evil)
    PICKLES[place](parts, evil.read_bytes())
    text = refused(write(tmp_path / "model.pt2", parts))
    assert not mark.exists()
    assert text.startswith(WHAT)


@pytest.mark.parametrize("form", [torch.save, lambda x, file: pickle.dump(x, file)])
def test_pickles_in_every_part(saved: Parts, tmp_path: Path, form: Any) -> None:
    """In its place, before or behind it. Some parts are only bytes, and are read."""
    mark, evil = tmp_path / "mark", BytesIO()
    form(Plants(mark), evil)
    for name, content in saved.items():
        for bad in (evil.getvalue(), evil.getvalue() + content, content + evil.getvalue()):
            path = write(tmp_path / "model.pt2", saved | {name: bad})
            with suppress(CommPlanError):
                read_program(path)
            assert not mark.exists(), name


@pytest.mark.parametrize("place", CODE)
def test_code(saved: Parts, tmp_path: Path, place: str) -> None:
    parts, mark = copy.copy(saved), tmp_path / "mark"
    CODE[place](parts, f"open({str(mark)!r}, 'w')".encode())
    text = refused(write(tmp_path / "model.pt2", parts))
    assert not mark.exists()
    assert text.startswith(WHAT)


def test_the_form_of_old_versions(saved: Parts, tmp_path: Path) -> None:
    """PyTorch falls back to it where the new form fails, and unpickles."""
    mark = tmp_path / "mark"
    path = write(tmp_path / "model.pt2", saved)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_state_dict.pt", pickle.dumps(Plants(mark)))
    assert "found: the form that PyTorch 2.7 and older wrote" in refused(path)
    assert not mark.exists()


def test_a_program_is_read_as_pytorch_reads_it(saved: Parts, tmp_path: Path) -> None:
    path = write(tmp_path / "model.pt2", saved)
    program, expected = read_program(path), torch.export.load(path)
    x, parts = torch.rand(5, 4), {"a": torch.rand(4)}
    actual, count = program.module()(x, parts=parts)
    assert count == 10
    assert torch.equal(actual["y"], expected.module()(x, parts=parts)[0]["y"])
