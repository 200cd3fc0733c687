"""Text of options becomes values."""

import pytest

from compiler.cli.inputs import options
from compiler.errors import MeshError
from compiler.ir.placement import Partial, Replicate, Shard


def test_settings_are_literals_or_strings():
    texts = ["experts=ep", "layers=3", "cache=True", "a=b=c", "names=['x']"]
    values = {"experts": "ep", "layers": 3, "cache": True, "a": "b=c", "names": ["x"]}
    assert options.settings(texts) == values


def test_token_counts_are_distinct_and_ascending():
    assert options.token_counts("64, 1,64") == (1, 64)


def test_layer_ranges():
    assert list(options.layer_range("3")) == [3]
    assert list(options.layer_range("3-5")) == [3, 4, 5]


def test_meshes_and_groups():
    mesh = options.mesh_of("dp=2, tp=4", ["0=tp", "all=dp,tp"])
    assert mesh.axes == {"dp": 2, "tp": 4}
    assert mesh.group("0") == mesh.group("tp")
    assert mesh.group("all").axis_size == 8
    with pytest.raises(MeshError):
        mesh.group("1")


def test_placements_per_axis():
    found = options.placements(["x=S(1)", "y=tp:P,dp:R"])
    assert found == {"x": Shard(1), "y": {"tp": Partial(), "dp": Replicate()}}
