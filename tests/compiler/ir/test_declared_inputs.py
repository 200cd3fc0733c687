"""Declarations of inputs: names, patterns, which of them counts, and what names nothing."""

import pytest

from compiler.errors import PlacementError
from compiler.ir.declared_inputs import by_input
from compiler.ir.placement import Replicate, Shard, Varying

KEYS = [f"layers.{i}.{part}.weight" for i in range(10) for part in ("o_proj", "mlp.o_proj")]
NAMES = {"x": "x"} | {key: f"p_{key.replace('.', '_')}" for key in KEYS}
NAMES |= {name: name for name in NAMES.values()}


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("layers.*.o_proj.weight", 10),
        ("layers.1*.o_proj.weight", 0),
        ("layers.*.*.o_proj.weight", 10),
        ("*.3.o_proj.*", 1),
        ("p_*_mlp_o_proj_weight", 10),
        ("*", 21),
    ],
)
def test_a_star_stands_for_one_part_of_a_dotted_name(pattern: str, count: int) -> None:
    if not count:
        with pytest.raises(PlacementError, match="which the model does not read"):
            by_input({pattern: Shard(1)}, NAMES, "model")
        return
    assert list(by_input({pattern: Shard(1)}, NAMES, "model").values()) == [Shard(1)] * count


@pytest.mark.parametrize("turned", [False, True])
def test_a_name_outweighs_patterns(turned: bool) -> None:
    given = {"layers.*.o_proj.weight": Shard(1), "layers.3.o_proj.weight": Replicate()}
    given = dict(reversed(given.items())) if turned else given
    found = by_input(given, NAMES, "model")
    assert len(found) == 10
    assert found["p_layers_3_o_proj_weight"] == Replicate()
    assert set(found.values()) == {Shard(1), Replicate()}


@pytest.mark.parametrize(
    ("first", "second"),
    [("layers.*.o_proj.weight", "*.3.o_proj.weight"), (KEYS[6], NAMES[KEYS[6]])],
    ids=["patterns", "names"],
)
def test_two_that_differ_about_one_input_are_refused(first: str, second: str) -> None:
    assert by_input({first: Varying(), second: Varying()}, NAMES, "model")
    with pytest.raises(PlacementError) as caught:
        by_input({first: Shard(1), second: Shard(0)}, NAMES, "model")
    assert str(caught.value) == (
        "inputs= declares 'p_layers_3_o_proj_weight' twice\n"
        f"  found: {first!r}: S(1), {second!r}: S(0)\n"
        "  remedy: declare it by its name, which outweighs patterns"
    )


def test_what_names_nothing_is_told_the_nearest_names() -> None:
    with pytest.raises(PlacementError) as caught:
        by_input({"layers.*.oproj.weight": Shard(1), 0: Shard(1)}, NAMES, "model")  # type: ignore[dict-item]
    assert caught.value.what == (
        "inputs= names [0, 'layers.*.oproj.weight'], which the model does not read"
    )
    assert caught.value.found.startswith("the nearest names are ['layers.9.o_proj.weight'")
    with pytest.raises(PlacementError, match=r"its inputs are \['x', .*, … and 29 more\]"):
        by_input({"zzz": Shard(1)}, NAMES, "model")
