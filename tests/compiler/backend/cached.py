"""Compiles a model by Inductor in a process of its own; prints what its caches did.

python -m tests.compiler.backend.cached RANKS OPTIONS…
"""

import json
import sys

import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.testing._internal.distributed.fake_pg import FakeStore

import compiler
from tests.compiler.backend.models import HIDDEN, Branches


def main(ranks: int, *options: str) -> None:
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    model = Branches(dist.group.WORLD)
    for text in options:
        torch._dynamo.reset()
        compiler.reset_reports()
        counters.clear()
        run = torch.compile(model, backend="commplan", options=json.loads(text), fullgraph=True)
        with torch.no_grad():
            run(torch.ones(4, HIDDEN))
        (report,) = compiler.reports()
        caches = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}
        print(json.dumps(caches | {"outcome": report.outcome, "after": report.after.all_reduces}))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
