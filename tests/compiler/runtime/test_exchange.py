"""Ranks asked for objects, and inputs compared."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from compiler.errors import CommPlanError, MeshError
from compiler.runtime.exchange import compare_inputs, exchange_over, ranks_of


def asked(group: dist.ProcessGroup) -> Any:
    exchange = exchange_over(group)
    if exchange is None:
        return None
    compare_inputs(exchange, {"same": torch.arange(3.0)})
    own = torch.full((3,), float(exchange.rank == 1))
    try:
        compare_inputs(exchange, {"same": torch.arange(3.0), "own": own})
    except CommPlanError as error:
        return exchange.gather(exchange.rank), exchange.size, str(error)
    return "not refused"


def test_exchange(gloo_pool: Any) -> None:
    for ranks, size, message in gloo_pool(4).run(asked):
        assert (ranks, size) == ([0, 1, 2, 3], 4)
        assert message.startswith("input 'own' must be the same on all ranks, and is not")
        assert "found: rank 1 differs from the others" in message


def test_one_rank_has_nobody_to_ask(gloo_pool: Any) -> None:
    assert gloo_pool(1).run(asked) == [None]


def test_no_process_group() -> None:
    with pytest.raises(MeshError, match="no process group is initialized"):
        ranks_of(None)
