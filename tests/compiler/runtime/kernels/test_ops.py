import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from compiler.errors import KernelError
from compiler.runtime.kernels import ops

OPS = torch.ops.commplan


def workspace(world_size: int, device: str = "cpu", rank: int = 0) -> tuple[Any, ...]:
    table = torch.zeros(world_size, dtype=torch.int64, device=device)
    state = torch.zeros(513, dtype=torch.int64, device=device)
    return (state, table, table, rank, 2**20, 16, 512, 0)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_fake_shapes(rows: int, dtype: torch.dtype) -> None:
    arguments = workspace(8, "meta")
    shard_rows = (rows + 7) // 8
    x, weight = torch.empty(rows, 32, dtype=dtype, device="meta"), torch.empty(32, device="meta")
    shard = torch.empty(shard_rows, 32, dtype=torch.float32, device="meta")

    def seen(*tensors: torch.Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]

    whole, part = ((rows, 32), dtype), ((shard_rows, 32), dtype)
    norm = (weight, 1e-6, 1.0, *arguments)
    assert seen(OPS.one_shot_all_reduce(x, *arguments)) == [whole]
    assert seen(OPS.two_shot_all_reduce(x, *arguments)) == [whole]
    assert seen(OPS.reduce_scatter(x, *arguments)) == [part]
    assert seen(OPS.all_gather(shard, rows, *arguments)) == [((rows, 32), torch.float32)]
    assert seen(*OPS.one_shot_all_reduce_add_rms_norm(x, x, *norm)) == [whole, whole]
    assert seen(*OPS.two_shot_all_reduce_add_rms_norm_whole(x, x, *norm)) == [whole, whole]
    kept = ((shard_rows, 32), torch.float32)
    assert seen(*OPS.two_shot_all_reduce_add_rms_norm(x, shard, *norm)) == [whole, kept]
    assert seen(*OPS.reduce_scatter_add_rms_norm(x, shard, *norm)) == [part, kept]
    in_place = (weight, x, 1e-6, 1.0, *arguments)
    assert OPS.one_shot_all_reduce_add_rms_norm_(x, x, *in_place) is None
    assert OPS.two_shot_all_reduce_add_rms_norm_(x, shard, *in_place) is None
    assert OPS.two_shot_all_reduce_(x, x, *arguments) is None
    assert OPS.all_gather_(shard, x, *arguments) is None


def test_rows_stay_symbolic() -> None:
    def body(x: torch.Tensor, shard: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
        y, _ = OPS.two_shot_all_reduce_add_rms_norm(x, shard, weight, 1e-6, 0.0, *rest)
        return OPS.reduce_scatter(y, *rest)

    arguments = workspace(8, "meta")
    meta = [torch.empty(*shape, device="meta") for shape in ((24, 32), (3, 32), (32,))]
    traced = make_fx(body, tracing_mode="symbolic")(*meta, *arguments)
    (output,) = next(node for node in traced.graph.nodes if node.op == "output").args
    rows = output.meta["val"].shape[0]
    assert isinstance(rows, torch.SymInt)
    assert rows == 3


@pytest.mark.parametrize("schema", ops.OPS)
def test_every_op_changes_the_state(schema: str) -> None:
    found = getattr(OPS, schema.split("(")[0]).default._schema
    state = next(argument for argument in found.arguments if argument.name == "state")
    assert state.alias_info is not None
    assert state.alias_info.is_write


def test_no_rows_launch_nothing() -> None:
    x, weight, arguments = torch.empty(0, 32), torch.ones(32), workspace(2)
    y, residual = ops.one_shot_all_reduce_add_rms_norm(x, x, weight, 1e-6, 0.0, *arguments)
    assert y.shape == residual.shape == (0, 32)
    assert ops.reduce_scatter(x, *arguments).shape == (0, 32)
    assert ops.all_gather(x, 0, *arguments).shape == (0, 32)


def test_refuses_an_unsupported_dtype() -> None:
    with pytest.raises(KernelError) as caught:
        ops.one_shot_all_reduce(torch.ones(2, 32, dtype=torch.float64), *workspace(2))
    assert str(caught.value) == (
        "the kernel does not serve this payload\n"
        "  where: torch.float64 [2, 32], 2 rows, 2 ranks\n"
        "  found: torch.float64 is not one of torch.bfloat16, torch.float16, torch.float32\n"
        "  remedy: ask Workspace.refusal first, or make a larger workspace"
    )


def test_refuses_a_payload_larger_than_a_slot() -> None:
    with pytest.raises(KernelError, match="1048704 bytes do not fit a slot of 1048576 bytes"):
        ops.reduce_scatter(torch.ones(8193, 32), *workspace(2))


def test_refuses_a_residual_that_is_not_the_shard() -> None:
    x, weight = torch.ones(9, 32), torch.ones(32)
    with pytest.raises(KernelError) as caught:
        ops.two_shot_all_reduce_add_rms_norm(x, x, weight, 1e-6, 0.0, *workspace(2))
    assert str(caught.value) == (
        "residual does not fit the other operands\n"
        "  found: [9, 32], strides [32, 1]\n"
        "  remedy: give a contiguous tensor of shape [5, 32]"
    )


def test_two_shots_with_a_whole_residual_refuse_another_dtype() -> None:
    x, weight = torch.ones(9, 32), torch.ones(32)
    with pytest.raises(KernelError) as caught:
        ops.two_shot_all_reduce_add_rms_norm_whole(x, x.half(), weight, 1e-6, 0.0, *workspace(2))
    assert str(caught.value) == (
        "residual and x are exchanged in one slot, as one dtype\n"
        "  found: residual torch.float16, x torch.float32\n"
        "  remedy: take the one-shot kernel"
    )


def test_refuses_a_weight_of_another_width() -> None:
    x = torch.ones(9, 32)
    with pytest.raises(KernelError, match="weight does not fit"):
        ops.one_shot_all_reduce_add_rms_norm(x, x, torch.ones(31), 1e-6, 0.0, *workspace(2))


def test_refuses_a_target_that_is_not_contiguous() -> None:
    x, y = torch.ones(9, 32), torch.ones(32, 9).t()
    with pytest.raises(KernelError, match=r"y does not fit(.|\n)*strides \[1, 9\]"):
        ops.two_shot_all_reduce_(x, y, *workspace(2))


def test_refuses_to_gather_a_shard_of_another_size() -> None:
    with pytest.raises(KernelError, match="shape \\[5, 32\\]"):
        ops.all_gather(torch.ones(4, 32), 9, *workspace(2))


def test_only_the_kernels_import_triton() -> None:
    folder = Path(ops.__file__).parent
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text())
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in imports for alias in node.names}
        names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
        if not path.name.startswith("device"):
            assert not names & {"triton", "device", "compiler.runtime.kernels.device"}, path.name
