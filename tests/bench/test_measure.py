"""Measuring a machine: really, with gloo ranks."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bench import measure
from bench.measurements import machine_text
from compiler.cost import MachineError, load_machine
from compiler.ir.collectives import Kind

CPU = torch.device("cpu")
SIZES = (4, 4096, 65536)
KINDS = (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER, Kind.ALL_GATHER, Kind.ALL_TO_ALL)
WAYS = {Kind.ALL_REDUCE: ((Kind.ALL_REDUCE,), (Kind.REDUCE_SCATTER, Kind.ALL_GATHER))}
"""What a kind may be done by: whichever was the faster when it was measured."""


def measured(group: dist.ProcessGroup) -> Any:
    told: list[str] = []
    found = measure.measured_node("here", [group], CPU, SIZES, told.append)
    return found, told


def test_two_ranks_write_a_machine_that_loads(gloo_pool: Any, tmp_path: Path) -> None:
    (data, told), (nothing, _) = gloo_pool(2).run(measured)
    assert nothing is None
    assert "all_reduce over 2 ranks, eager, 4096 bytes" in told
    path = tmp_path / "here.json"
    path.write_text(machine_text(data))
    machine = load_machine(path)
    assert {(t.kind, t.ranks, t.launches) for t in machine.tables} == {
        (kind, 2, ("eager",)) for kind in KINDS
    }
    for kind in KINDS:
        phases = machine.collective(kind, 4096, [[0, 1]], launch="eager").phases
        assert tuple(phase.kind for phase in phases) in WAYS.get(kind, ((kind,),))
        for phase in phases:
            assert phase.time_ps > 0
            assert phase.library == f"gloo {torch.__version__}"
        with pytest.raises(MachineError, match="over 2 ranks takes"):
            machine.collective(kind, 4096, [[0, 1]], launch="graph")
    assert machine.launch_ps("eager") > 0
    assert machine.memory_bytes_per_us > 100
    assert machine.matmul_flop_per_us(torch.float32) > 100
    # payloads are rounded up to whole shards of both ranks
    assert [row[0] for row in data["rows"][0]["rows"]] == [8, 4096, 65536]


def measured_kernels(group: dist.ProcessGroup) -> Any:
    told: list[str] = []
    return measure.measure_fused(group, CPU, SIZES, source="test", tell=told.append), told


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the kernels")
def test_without_a_workspace_no_kernel_is_measured(gloo_pool: Any) -> None:
    why = "no symmetric memory for this group: there is no CUDA device"
    expected = ([], [f"fused kernels over 2 ranks, none: {why}"])
    assert gloo_pool(2).run(measured_kernels) == [expected] * 2


def measured_by_groups(everyone: dist.ProcessGroup) -> Any:
    first = dist.new_group([0, 1])  # all ranks of the pool take part
    return measure.measured_node("here", [first, everyone], CPU, SIZES)


def test_ranks_outside_a_smaller_group_wait(gloo_pool: Any) -> None:
    data, *others = gloo_pool(8).run(measured_by_groups)
    assert others == [None] * 7
    assert [row["ranks"] for row in data["rows"]] == [2] * 4 + [8] * 4


def test_lockstep_takes_the_slowest_rank(gloo_pool: Any) -> None:
    assert gloo_pool(2).run(slowest_of) == [2.0, 2.0]


def slowest_of(group: dist.ProcessGroup) -> float:
    return measure.slowest(1.0 + group.rank(), group, CPU)


def test_every_kind_does_what_it_says(gloo_pool: Any) -> None:
    for payloads in gloo_pool(4).run(called):
        assert payloads == [112] * 4  # of 100 bytes, in shards of floats on 4 ranks


def called(group: dist.ProcessGroup) -> list[int]:
    found = []
    for kind in KINDS:
        payload_bytes, call = measure.collective_call(kind, 100, group, CPU, torch.float32)
        call()
        found.append(payload_bytes)
    return found


@pytest.mark.parametrize(("ranks", "sizes"), [(1, ()), (2, (2,)), (6, (2, 4, 6)), (8, (2, 4, 8))])
def test_group_sizes(ranks: int, sizes: tuple[int, ...]) -> None:
    assert measure.group_sizes(ranks) == sizes


def test_one_process_measures_no_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    data = measure.measured_machine("alone", lambda _: SIZES)
    assert data is not None
    assert (data["tables"], data["ranks_per_node"]) == ([], 1)
    assert json.loads(machine_text(data)) == data


def test_processes_started_as_torchrun_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=started, args=(r, port, tmp_path), daemon=True) for r in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["rank0.json"]
    machine = load_machine(tmp_path / "rank0.json")
    assert machine.collective_time_ps(Kind.ALL_GATHER, 1024, (2, 1), launch="eager") > 0


def started(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    data = measure.measured_machine("pair", lambda _: SIZES)
    if data is not None:
        (folder / f"rank{rank}.json").write_text(machine_text(data))


def test_several_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("RANK", "0"), ("WORLD_SIZE", "16"), ("LOCAL_WORLD_SIZE", "8")):
        monkeypatch.setenv(name, text)
    with pytest.raises(MachineError, match="runs on one node") as caught:
        measure.measured_machine("two", lambda _: SIZES)
    assert "16 ranks, 8 of them on this node" in str(caught.value)


@pytest.mark.gpu
def test_a_gpu() -> None:
    found = measure.measure_hardware(torch.device("cuda"), "here")
    assert set(found["launch"]) == {"eager", "graph"}
    assert found["launch"]["graph"]["value"] < found["launch"]["eager"]["value"]
    assert found["matmul"]["bfloat16"]["value"] > found["matmul"]["float32"]["value"]
