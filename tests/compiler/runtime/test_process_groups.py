"""Process groups of a mesh, made once by all ranks together; graphs that run in them."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler import Verdict, optimize_allreduce
from compiler.errors import MeshError
from compiler.ir.mesh import Mesh
from compiler.runtime.counting import count_collectives
from compiler.runtime.process_groups import ProcessGroups, group_named
from tests.compiler.optimize.models import HIDDEN, Grid

MESH = Mesh({"pp": 2, "dp": 2, "tp": 2})


def created(group: dist.ProcessGroup) -> tuple[bool, bool, list[int], float]:
    made = ProcessGroups(group)
    both = MESH.along("dp", "tp")
    first = made.of(both)
    total = torch.tensor([float(group.rank())])
    dist.all_reduce(total, group=first)
    everyone = made.of(MESH.along(*MESH.axes)) is group
    return everyone, made.of(both) is first, dist.get_process_group_ranks(first), total.item()


def test_is_created_once_and_holds_the_ranks_of_the_mesh(gloo_pool: Any) -> None:
    for rank, found in enumerate(gloo_pool(8).run(created)):
        members = [0, 1, 2, 3] if rank < 4 else [4, 5, 6, 7]
        assert found == (True, True, members, sum(members))


def may_grow(group: dist.ProcessGroup) -> bool:
    return ProcessGroups(group).may_grow


@pytest.mark.parametrize("size", [4, 8])
def test_only_all_ranks_of_the_job_can_make_groups(gloo_pool: Any, size: int) -> None:
    assert gloo_pool(size).run(may_grow) == [size == 8] * size


def named(group: dist.ProcessGroup) -> tuple[bool, str]:
    with pytest.raises(MeshError) as caught:
        group_named("nowhere")
    return group_named(str(group.group_name)) is group, str(caught.value)


def test_groups_by_name(gloo_pool: Any) -> None:
    for found, message in gloo_pool(2).run(named):
        assert found
        assert message.startswith("no process group has the name that a collective gives\n")
        assert "found: 'nowhere'" in message


def grid(group: dist.ProcessGroup) -> dict[str, Any]:
    axes = [MESH.along("dp"), MESH.along("tp")]
    every = [dist.new_group(ranks) for held in axes for ranks in held.ranks]
    own = [g for g in every if g is not dist.GroupMember.NON_GROUP_MEMBER]
    model = Grid(*own, rank=group.rank())
    optimized = optimize_allreduce(model, group=group)
    x = torch.linspace(-1, 1, 3 * HIDDEN).reshape(3, HIDDEN)
    with torch.no_grad():
        optimized(x)
        with count_collectives() as counted:
            got = optimized(x)
        want = model(x)
        optimized(torch.cat([x, x]))
    collectives = optimized.report.after.collectives
    return {
        "difference": float((got - want).abs().max()),
        "ran": counted.collectives["all_reduce"],
        "before": optimized.report.before.all_reduces,
        "verdict": optimized.report.verdict,
        "groups": [c.group for c in collectives],
    }


def test_all_reduces_over_orthogonal_groups_run_as_one(gloo_pool: Any) -> None:
    for found in gloo_pool(8).run(grid):
        assert found["difference"] < 1e-5
        assert (found["before"], found["ran"]) == (2, 1)
        assert found["verdict"] is Verdict.EQUIVALENT
        assert len(found["groups"]) == 1
        assert "*" in found["groups"][0]
