"""What graphs compute on one rank, without groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from compiler.ir import collectives
from compiler.ir.graph import SpmdGraph


class Simulated(fx.Interpreter):
    """Runs a graph on one rank, as if all ranks held the same: collectives need no group."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else None
        match collectives.OPS.get(target), target:
            case (collectives.Kind.ALL_REDUCE, _):
                return x * 2
            case (collectives.Kind.REDUCE_SCATTER, _):
                return x.chunk(args[2])[0] * 2
            case (collectives.Kind.ALL_GATHER, _):
                return torch.cat([x] * args[1])
            case (_, collectives.WAIT):
                return x
        return super().call_function(target, args, kwargs)


def same_results(source: SpmdGraph, target: SpmdGraph, *inputs: Any) -> None:
    target.module.load_state_dict(source.module.state_dict(), assign=True)
    expected, found = (Simulated(g.module).run(*inputs) for g in (source, target))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
