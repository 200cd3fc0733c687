"""The parts below the commands."""

import pytest

from compiler.cli import main
from compiler.cli.app import app
from compiler.cli.inputs import arguments
from compiler.cli.render.collective_tables import bytes_text
from compiler.cli.render.layers import layers_text, ranges_text
from compiler.cli.render.remark_tables import assumptions
from compiler.errors import MeshError
from compiler.ir.placement import Partial, Replicate, Shard


def test_settings_are_literals_or_strings():
    given = ["experts=ep", "layers=3", "cache=True", "a=b=c", "names=['x']"]
    found = {"experts": "ep", "layers": 3, "cache": True, "a": "b=c", "names": ["x"]}
    assert arguments.settings(given) == found


def test_token_counts_are_distinct_and_ascending():
    assert arguments.token_counts("64, 1,64") == (1, 64)


def test_layer_ranges():
    assert list(arguments.layer_range("3")) == [3]
    assert list(arguments.layer_range("3-5")) == [3, 4, 5]


def test_meshes_and_groups():
    mesh = arguments.mesh_of("dp=2, tp=4", ["0=tp", "all=dp,tp"])
    assert mesh.axes == {"dp": 2, "tp": 4}
    assert mesh.group("0") == mesh.group("tp")
    assert mesh.group("all").axis_size == 8
    with pytest.raises(MeshError):
        mesh.group("1")


def test_placements_per_axis():
    found = arguments.placements(["x=S(1)", "y=tp:P,dp:R"])
    assert found == {"x": Shard(1), "y": {"tp": Partial(), "dp": Replicate()}}


def test_numbers_as_ranges():
    assert ranges_text([5, 1, 0, 2, 7, 8]) == "0-2, 5, 7-8"


def test_paths_that_differ_in_the_layer_are_one():
    paths = ["m.layers.3.moe", "embed", "m.layers.4.moe", "", "m.layers.7"]
    assert layers_text(paths) == "m.layers.{3-4}.moe, embed, m.layers.7"


def test_assumptions_by_reason():
    texts = ["parameter 'l.0.w': declared", "parameter 'l.1.w': declared", "numbers agree"]
    assert list(assumptions(texts)) == ["2 x parameter: declared  (l.{0-1}.w)", "numbers agree"]


@pytest.mark.parametrize(
    ("payload_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1 << 40, "1.0 TiB"),
        (1 << 51, "2048.0 TiB"),
    ],
)
def test_bytes(payload_bytes, text):
    assert bytes_text(payload_bytes) == text


def test_an_internal_error_is_told_from_a_verdict(monkeypatch, capsys):
    def broken(self, **_):
        raise AssertionError("an invariant")

    monkeypatch.setattr(type(app), "__call__", broken)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 70
    assert "AssertionError: an invariant" in capsys.readouterr().err
