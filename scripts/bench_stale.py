"""Changes of models after their first call: is the next call right, refused, or silently wrong?

Every kind of change goes through both doors, `optimize_allreduce` and `torch.compile` with the
backend, on two gloo ranks. Each is "right (kept)", "right (captured anew)" or "refused"; one that
is silently wrong makes the script fail. Beside the table: what it costs a call to look, at 45
layers, and what comparing parameters by identity costs, which it replaces.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from operator import is_
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from compiler import CommPlanError, optimize_allreduce
from compiler.capture.python_reads import Reads
from compiler.runtime.watch import Watch

RANKS, WIDTH, TOKENS, LAYERS = 2, 16, 4, 45
DOORS = ("optimize_allreduce", "torch.compile")
WRONG = "SILENTLY WRONG"
FACTOR = 1.0


class Config:
    """What the layers share."""

    def __init__(self) -> None:
        self.scale, self.rope = 1.0, {"theta": 1.0}


class Norm(nn.Module):
    """Root mean square, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), 1e-6

    def spread(self, x: Tensor) -> Tensor:
        """Mean of squares."""
        return x.pow(2).mean(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, WIDTH], replicated."""
        return x * torch.rsqrt(self.spread(x) + self.eps) * self.weight


class Block(nn.Module):
    """Two row-parallel products, each with its all_reduce."""

    def __init__(self, config: Config, other: Config) -> None:
        super().__init__()
        self.norm, self.drop = Norm(), nn.Dropout(0.0)
        self.a, self.b = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.config, self.scale, self.use_b = config, 1.0, True
        self.scaling, self.steps, self.pair = {"default": 1.0}, [1.0], (other,)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, WIDTH], replicated."""
        y = self.a(self.norm(x)) * self.scale * self.config.scale * self.config.rope["theta"]
        dist.all_reduce(y)
        x = x + y * self.scaling["default"] * self.steps[0] * self.pair[0].scale
        if self.use_b:
            z = self.b(self.drop(x))
            dist.all_reduce(z)
            x = x + z
        return x


def factor(x: Tensor) -> Tensor:
    """A function of the module, which reads a global name."""
    return x * FACTOR


class Model(nn.Module):
    """Blocks whose weights differ between ranks."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        torch.manual_seed(1 + (dist.get_rank() if dist.is_initialized() else 0))
        self.config, self.other = Config(), Config()
        self.blocks = nn.ModuleList(Block(self.config, self.other) for _ in range(blocks))
        self.register_buffer("table", torch.ones(WIDTH))
        self.plain = torch.ones(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, WIDTH], replicated."""
        for block in self.blocks:
            x = block(x)
        return factor(x) * self.table * self.plain


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * 2


class OtherNorm(Norm):
    """A class to take another's place."""

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, WIDTH], replicated."""
        return x


Undo = Callable[[], object]
Change = Callable[[Any], "Undo | None"]


def assign(where: Callable[[Any], Any], name: str, value: Any) -> Change:
    """Sets an attribute, and sets it back."""

    def change(model: Any) -> Undo:
        target = where(model)
        before = getattr(target, name)
        setattr(target, name, value(before) if callable(value) else value)
        return lambda: setattr(target, name, before)

    return change


def put(where: Callable[[Any], Any], key: Any, value: Any) -> Change:
    """Sets an item, and sets it back."""

    def change(model: Any) -> Undo:
        target = where(model)
        before = target[key]
        target[key] = value
        return lambda: target.__setitem__(key, before)

    return change


def once(act: Callable[[Any], object]) -> Change:
    """A change that is not undone."""
    return lambda model: (act(model), None)[1]


def block(model: Any) -> Any:
    """The block that is changed."""
    return model.blocks[0]


def doubled(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward, or another function, in the place of ``call``."""
    return lambda *args: call(*args) * 2


def twice(*args: Any) -> Any:
    """A hook: doubles what it gets last."""
    return args[-1] * 2


def before(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """A hook that runs before: doubles the argument."""
    return (args[0] * 2,)


def patched_instance(model: Any) -> Undo:
    """A forward on the instance."""
    block(model).forward = doubled(block(model).forward)
    return lambda: delattr(block(model), "forward")


def replaced(model: Any) -> None:
    """Another linear layer in the place of one."""
    other = nn.Linear(WIDTH, WIDTH, bias=False)
    other.weight.data.copy_(block(model).a.weight.data * 3)
    block(model).a = other


def converted(model: Any) -> None:
    """Every tensor through ``.data``."""
    for x in (*model.parameters(), *model.buffers()):
        x.data = x.data.double()
    model.plain = model.plain.double()


def to_double(model: Any) -> None:
    """Parameters, buffers and the plain tensor."""
    model.double()
    model.plain = model.plain.double()


def global_hook(_: Any) -> Undo:
    """A hook of all modules."""

    def hook(module: nn.Module, args: Any, result: Any) -> Any:
        return result * 2 if isinstance(module, Block) else None

    return nn.modules.module.register_module_forward_hook(hook).remove


def lora(model: Any) -> None:
    """Adapters in the layers named ``a``."""
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=2, target_modules=["a"], init_lora_weights=False)
    inject_adapter_in_model(settings, model)
    model.eval()


def adapters(enabled: bool) -> Callable[[Any], None]:
    """Switches all adapters on or off."""

    def switch(model: Any) -> None:
        for module in model.modules():
            if hasattr(module, "enable_adapters"):
                module.enable_adapters(enabled)

    return switch


def adapters_off(model: Any) -> Undo:
    """Off, and on again."""
    adapters(False)(model)
    return lambda: adapters(True)(model)


def merged_adapters(model: Any) -> Undo:
    """Into the weights, and out again."""
    block(model).a.merge()
    return block(model).a.unmerge


def names(_: Any) -> dict[str, Any]:
    """Global names as the functions of this file read them."""
    return globals()


CHANGES: dict[str, Change] = {
    "float attribute": assign(block, "scale", 0.25),
    "bool attribute": assign(block, "use_b", False),
    "attribute through __dict__": put(lambda m: vars(block(m)), "use_b", False),
    "attribute deleted, class default": once(
        lambda m: (setattr(Block, "use_b", False), delattr(block(m), "use_b"))
    ),
    "attribute of a config object": assign(lambda m: m.config, "scale", 2.0),
    "dict in a config object": put(lambda m: m.config.rope, "theta", 2.0),
    "dict of a module": put(lambda m: block(m).scaling, "default", 4.0),
    "list of a module": put(lambda m: block(m).steps, 0, 2.0),
    "object in a tuple": assign(lambda m: block(m).pair[0], "scale", 2.0),
    "submodule replaced": once(replaced),
    "submodule deleted": once(lambda m: m.blocks.__delitem__(1)),
    "layer appended": once(lambda m: m.blocks.append(Block(m.config, m.other).eval())),
    "_modules written": once(
        lambda m: m.blocks._modules.update(two=Block(m.config, m.other).eval())
    ),
    "forward of an instance": patched_instance,
    "forward of a class": assign(lambda m: Norm, "forward", doubled),
    "another method of a class": assign(lambda m: Norm, "spread", doubled),
    "class of a module": assign(lambda m: block(m).norm, "__class__", lambda _: OtherNorm),
    "forward hook": lambda m: block(m).register_forward_hook(twice).remove,
    "forward pre-hook": lambda m: block(m).register_forward_pre_hook(before).remove,
    "global forward hook": global_hook,
    "parametrization": once(
        lambda m: parametrize.register_parametrization(block(m).a, "weight", Twice())
    ),
    "weight_norm": once(lambda m: parametrizations.weight_norm(block(m).a)),
    "new Parameter": once(
        lambda m: setattr(block(m).a, "weight", nn.Parameter(block(m).a.weight.detach() * 2))
    ),
    "_parameters written": once(
        lambda m: block(m).a._parameters.update(weight=nn.Parameter(block(m).a.weight.detach() * 2))
    ),
    "parameters tied": once(lambda m: setattr(block(m).b, "weight", block(m).a.weight)),
    "weight.data replaced": once(
        lambda m: setattr(block(m).a.weight, "data", block(m).a.weight.data * 2)
    ),
    "weight written in place": once(lambda m: block(m).a.weight.data.mul_(2)),
    "buffer replaced": assign(lambda m: m, "table", torch.full((WIDTH,), 3.0)),
    "plain tensor replaced": assign(lambda m: m, "plain", torch.full((WIDTH,), 3.0)),
    "load_state_dict": once(
        lambda m: m.load_state_dict({k: v * 0.5 for k, v in m.state_dict().items()})
    ),
    "load_state_dict, assign": once(
        lambda m: m.load_state_dict({k: v * 0.5 for k, v in m.state_dict().items()}, assign=True)
    ),
    ".to(float64)": once(to_double),
    ".data converted": once(converted),
    ".train()": lambda m: (m.train(), m.eval)[1],
    "global name rebound": put(names, "FACTOR", 2.0),
    "function of a module patched": put(names, "factor", doubled(factor)),
    "LoRA added": once(lora),
    "LoRA off": adapters_off,
    "LoRA scaling": put(lambda m: block(m).a.scaling, "default", 0.125),
    "LoRA merged": merged_adapters,
}


def outcomes(door: str, names: list[str]) -> list[dict[str, str]]:
    """What became of each change on this rank."""
    rows = []
    for name in names:
        model = Model(2).eval()
        if name.startswith("LoRA ") and name != "LoRA added":
            lora(model)
        try:
            with torch.no_grad():
                rows.append({"change": name, "door": door, **outcome(door, model, CHANGES[name])})
            if dist.get_rank() == 0:
                print(*rows[-1].values(), sep="; ", file=sys.stderr, flush=True)
        finally:
            if "use_b" in vars(Block):
                del Block.use_b
    return rows


def outcome(door: str, model: Model, change: Change) -> dict[str, str]:
    """The call after a change, and after it was undone."""
    torch._dynamo.reset()
    is_view = door == DOORS[0]
    run: Any = optimize_allreduce(model) if is_view else torch.compile(model, backend="commplan")
    x = torch.linspace(-1, 1, TOKENS * WIDTH).reshape(TOKENS, WIDTH)
    run(x)
    said = {"changed": "", "undone": ""}
    undo = change(model)
    try:
        said["changed"] = judged(run, model, x, is_view)
    finally:
        if undo is not None:
            undo()
    if undo is not None:
        said["undone"] = judged(run, model, x, is_view)
    return said


def judged(run: Any, model: Model, x: Tensor, is_view: bool) -> str:
    """Whether a call is right, and whether a graph was captured for it."""
    x = x.to(model.table.dtype)
    want, graphs = model(x), count(run, is_view)
    try:
        got = run(x)
    except CommPlanError as error:
        return f"refused: {error.what}"
    if got.dtype != want.dtype or not torch.allclose(got, want, atol=1e-5):
        return f"{WRONG}: off by {float((got - want).abs().max()):.3g}"
    return "right (captured anew)" if count(run, is_view) > graphs else "right (kept)"


def count(run: Any, is_view: bool) -> int:
    """Graphs that were captured, those that were dropped included."""
    if is_view:
        return int(run.optimized.captures)
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def on_ranks(doors: list[str], names: list[str]) -> list[list[dict[str, str]]]:
    """The rows of all ranks."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (folder, doors, names), nprocs=RANKS)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(RANKS)]


def _rank(rank: int, folder: str, doors: list[str], names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    rows = [row for door in doors for row in outcomes(door, names)]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


def cost(layers: int, rounds: int) -> dict[str, Any]:
    """Microseconds per call of looking, and of comparing parameters by identity; CPU time.

    A layer is three blocks: 15 modules.
    """
    with torch.device("meta"):
        model = Model(3 * layers).eval()
    reads, watch = Reads(model), Watch()
    with torch.no_grad(), reads.recording():
        call_without_ranks(model)
    reads.settle()
    watch.add(reads)
    slots = [(m._parameters, key) for m in model.modules() for key in m._parameters]
    slots += [(m._buffers, key) for m in model.modules() for key in m._buffers]
    entries = [table[key] for table, key in slots]

    def identity() -> bool:
        return all(map(is_, [table[key] for table, key in slots], entries))

    taken: dict[str, list[float]] = {"watch_us": [], "identity_us": []}
    for _ in range(rounds):
        for name, look in (("watch_us", watch.unchanged), ("identity_us", identity)):
            start = time.process_time()
            for _ in range(100):
                assert look()
            taken[name].append((time.process_time() - start) * 1e4)
    times = {name: statistics.median(us) for name, us in taken.items()}
    return {
        "layers": layers, "modules": len(list(model.modules())), "tensors": len(slots), **times,
        "more_us": times["watch_us"] - times["identity_us"],
    }  # fmt: skip


def call_without_ranks(model: Model) -> None:
    """One call of the model on meta tensors, its all_reduces left out."""
    reduce, dist.all_reduce = dist.all_reduce, lambda x: None  # type: ignore[assignment]
    try:
        model(torch.ones(TOKENS, WIDTH, device="meta"))
    finally:
        dist.all_reduce = reduce


def has_backend() -> bool:
    """Whether there is a second door."""
    try:
        return hasattr(importlib.import_module("compiler.backend"), "commplan")
    except ImportError:
        return False


def table_of(rows: list[dict[str, str]]) -> Table:
    """A row per change, a column per door."""
    doors = list(dict.fromkeys(row["door"] for row in rows))
    table = Table(title="the call after a change; after it was undone", title_justify="left")
    for column in ("change", *doors):
        table.add_column(column)
    for name in dict.fromkeys(row["change"] for row in rows):
        here = {row["door"]: row for row in rows if row["change"] == name}
        said = [here[d]["changed"] + (f"; {here[d]['undone']}" if here[d]["undone"] else "")
                for d in doors]  # fmt: skip
        table.add_row(name, *said)
    return table


def main() -> int:
    """Prints a table on standard error and JSON on standard output; 1 if a call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the model whose calls are "
                        f"timed; default: {LAYERS}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=50, help="of 100 looks; default: 50")
    parser.add_argument("--door", action="append", choices=DOORS, help="default: all there are")
    parser.add_argument("--change", action="append", choices=CHANGES, help="default: all")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console = Console(stderr=True)
    doors = arguments.door or [DOORS[0], *DOORS[1:] * has_backend()]
    ranks = on_ranks(doors, arguments.change or list(CHANGES))
    console.print(table_of(ranks[0]))
    looks = cost(arguments.layers, arguments.rounds)
    console.print(
        f"{looks['layers']} layers, {looks['modules']} modules: looking {looks['watch_us']:.1f} us "
        f"a call, comparing {looks['tensors']} tensors by identity {looks['identity_us']:.1f} us"
    )
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(json.dumps({"versions": versions, "rows": ranks[0], "cost": looks}, indent=1))
    wrong = [r for rows in ranks for r in rows if WRONG in r["changed"] + r["undone"]]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
