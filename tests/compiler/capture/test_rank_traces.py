import copy
import pickle

import pytest
import torch
from torch import fx

from compiler.capture import rank_traces
from compiler.capture.rank_traces import affine, by_value, check_rows, describe, differing, mark
from compiler.errors import CaptureError
from compiler.ir import access
from compiler.ir.access import RankFloat, RankInt


def graph(offset, scale=2.0, op=torch.ops.aten.add.Tensor, shape=(3,)):
    """scale * (x + offset)."""
    made = fx.Graph()
    x = made.placeholder("x")
    y = made.call_function(op, (x, offset))
    z = made.call_function(torch.ops.aten.mul.Tensor, (y, scale))
    made.output((z,))
    for node in (x, y, z):
        node.meta = {"val": torch.empty(shape, device="meta")}
    return made


def described(*graphs):
    return {rank: describe(g, {}, {}) for rank, g in enumerate(graphs)}


def rows(*graphs):
    return {rank: d.rows for rank, d in described(*graphs).items()}


def test_numbers_that_differ_are_found_and_no_others():
    found = differing({r: d.numbers for r, d in described(graph(0), graph(16)).items()})
    assert found == {(1, 0): {0: 0, 1: 16}}
    check_rows(rows(graph(0), graph(16)))


def test_marked_numbers_keep_every_value_in_copies():
    made = graph(16)
    mark(made, 1, {(1, 0): [0, 16], (2, 0): [2.0, 3.0]})
    for held in (made, copy.deepcopy(made)):
        _, y, z, _ = held.nodes
        assert [c.values for c in access.rank_constants(y)] == [(0, 16)]
        assert [c.values for c in access.rank_constants(z)] == [(2.0, 3.0)]
        assert isinstance(y.args[1], RankInt)
        assert y.args[1] == 16
        assert isinstance(z.args[1], RankFloat)
    assert pickle.loads(pickle.dumps(y.args[1])).values == (0, 16)
    module = fx.GraphModule(torch.nn.Module(), made)
    assert module(torch.zeros(1))[0].item() == 48.0


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (graph(0, op=torch.ops.aten.sub.Tensor), "aten.sub.Tensor"),
        (graph(0, shape=(4,)), r"float32\[4\]"),
        (graph(0.5), "float"),
    ],
)
def test_any_other_difference_is_refused_with_the_ranks(other, difference):
    with pytest.raises(CaptureError, match=f"ranks 0, 2: .*; rank 1: .*{difference}"):
        check_rows(rows(graph(0), other, graph(0)))


@pytest.mark.parametrize("by_name", [False, True])
def test_names_of_groups_do_not_matter(by_name):
    def reduced(name):
        made = graph(0)
        node, x = access.output(made), access.node_of(made, "placeholder")[0]
        op = torch.ops._c10d_functional.all_reduce.default
        with made.inserting_before(node):
            args, kwargs = ((), {"group_name": name}) if by_name else ((name,), {})
            made.call_function(op, (x, "sum", *args), kwargs).meta = x.meta
        return made

    one, other = reduced("0"), reduced("1")
    check_rows(rows(one, other))
    assert describe(other, {}, {}).uses == ("1",)


def test_a_longer_program_is_refused():
    longer = graph(0)
    with longer.inserting_before(access.output(longer)):
        extra = longer.call_function(torch.ops.aten.neg.default, (next(iter(longer.nodes)),))
    extra.meta = {"val": torch.empty(3, device="meta")}
    with pytest.raises(CaptureError, match=r"aten\.neg"):
        check_rows(rows(graph(0), longer))


def test_names_of_symbols_do_not_matter():
    symbols: dict[str, str] = {}
    first = rank_traces._renumber("f32[s77, 2*s3]", symbols)
    assert first == rank_traces._renumber("f32[s1, 2*s12]", {})


def test_values_on_a_line_through_the_known_ranks_are_inferred():
    assert affine({0: 0, 3: 48, 7: 112}, 8) == tuple(range(0, 128, 16))
    assert affine({0: 5, 1: 5}, 2) == (5, 5)
    assert affine({0: 0.0, 1: 0.25}, 2) == (0.0, 0.25)
    assert all(isinstance(v, int) for v in affine({0: 1, 2: 5}, 3))


def test_values_on_no_line_are_not_inferred():
    assert affine({0: 0, 2: 0, 3: 1}, 4) is None
    assert affine({0: 0, 3: 1}, 4) is None


def test_the_common_value_comes_first():
    assert by_value({0: "a", 1: "b", 2: "a"}) == "ranks 0, 2: a; rank 1: b"
