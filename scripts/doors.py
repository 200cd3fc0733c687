"""What models that people have do behind each door of the optimizer: one rank's side.

A *subject* is a model sharded by others: by transformers, by ``parallelize_module``, with adapters
of peft. A *door* is what is done to it. Every subject runs eagerly, then through the door, on the
same inputs; ``Outcome`` holds what differed.
"""

from __future__ import annotations

import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers

from compiler import optimize_allreduce
from compiler.runtime.counting import NAMES
from tests.families.families import FAMILIES
from tests.families.plans import PLANS

PROMPT, GENERATED = (1, 9), 32
"""Sequences and tokens of a call; tokens that are generated from it."""
EVEN_PROMPT = (1, 8)
"""For plans: DTensor itself cannot embed tokens that ranks do not share evenly."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CACHES = ("dynamic", "static")

Model = Any
"""A module, or what a door made of one: called alike."""


@dataclass(frozen=True)
class Door:
    """A way to run a model.

    Attributes:
        called: what is called instead of the model; takes the subject's ``declared`` too.
        generating: what has ``generate`` instead of the model.
        verdicts: one per graph that the optimizer made; None of others' doors.
    """

    called: Callable[..., Model]
    generating: Callable[[Model], Model]
    verdicts: Callable[[Model], list[str]] | None = None


def compiled(backend: str, inner: str | None = None) -> Door:
    """``torch.compile``; for ``generate`` on the model's ``forward``, as it calls that."""
    options: dict[str, Any] = {"backend": backend}
    if inner:
        options["options"] = {"inner": inner}

    def generating(model: Model) -> Model:
        model.forward = torch.compile(model.forward, **options)
        return model

    return Door(
        lambda model, **_: torch.compile(model, **options),
        generating,
        _backend_verdicts if inner else None,
    )


def _backend_verdicts(_: Model) -> list[str]:
    """Of every graph since ``_opened``: its verdict, or why it runs as it was written."""
    from compiler.backend import Outcome as Done
    from compiler.backend import reports, reset_reports

    done = reports()
    reset_reports()
    return [
        str(r.verdict) if r.model else
        f"{r.outcome}: {r.reason}".splitlines()[0] if r.outcome is Done.FELL_BACK else
        str(r.outcome)
        for r in done
    ]  # fmt: skip


DOORS: Mapping[str, Door] = {
    "eager": Door(lambda model, **_: model, lambda model: model),
    "aot_eager": compiled("aot_eager"),
    "inductor": compiled("inductor"),
    "optimize": Door(
        optimize_allreduce,
        optimize_allreduce,
        lambda model: [str(graph.report.verdict) for graph in model.prepared],
    ),
    "compile": compiled("commplan", "eager"),
    "compile-inductor": compiled("commplan", "inductor"),
}


@dataclass(frozen=True)
class Subject:
    """A model that others have sharded.

    Attributes:
        build: this rank's part, in a dtype.
        logits: of one call.
        states: name -> the context of a call; all of them, in turn, on the same model.
        generates: whether the model has ``generate``.
        declared: what ``optimize_allreduce`` cannot know, as it takes it.
    """

    build: Callable[[torch.dtype], Model]
    logits: Callable[[Model], torch.Tensor]
    states: Mapping[str, Callable[[Model], AbstractContextManager[Any]]]
    generates: bool
    declared: Mapping[str, Any] = field(default_factory=dict)


def _prompt(shape: tuple[int, int] = PROMPT, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 64, shape, generator=torch.Generator().manual_seed(seed))


def _decoder_logits(model: Model) -> torch.Tensor:
    return model(_prompt(), use_cache=False).logits  # type: ignore[no-any-return]


def subject(kind: str, name: str, folder: Path) -> Subject:
    """What to run: a family of transformers, a plan, or a family with adapters.

    Args:
        kind: "family", "plan" or "peft".
        name: key of ``FAMILIES``, of ``PLANS``, or again of ``FAMILIES``.
        folder: of the saved models, one by family.
    """
    plain: dict[str, Any] = {"": lambda model: nullcontext()}
    if kind == "plan":
        plan, ranks = PLANS[name], dist.get_world_size()
        batch = _prompt(EVEN_PROMPT, 1 + dist.get_rank() // (ranks // plan.replicas))
        build = partial(plan.build, ranks=ranks)
        return Subject(
            build, lambda model: model(batch), plain, generates=False, declared=plan.declared(ranks)
        )

    def load(dtype: torch.dtype) -> Model:
        return FAMILIES[name].load(folder / name, dtype)

    if kind == "family":
        return Subject(load, _decoder_logits, plain, generates=True)
    from tests.families.adapters import with_lora  # needs peft, which nothing else does

    off: dict[str, Any] = {"off": lambda model: model.disable_adapter()}
    states = {"on": plain[""], **off, "on again": plain[""]}
    experts = FAMILIES[name].routed
    return Subject(
        lambda dtype: with_lora(load(dtype), experts), _decoder_logits, states, generates=False
    )


@dataclass
class Outcome:
    """What one subject did behind one door, on one rank.

    Attributes:
        all_reduces: kind of call -> how many ran in it, eagerly and behind the door.
        differences: kind of call -> largest difference of logits, over their root mean square.
        tokens: kind of cache -> whether the same tokens were generated, twice.
        seconds: until the first result: "eager", "door", and the CPU's share "door cpu".
        graphs: how many graphs Dynamo or the optimizer made.
        breaks: graph breaks.
        verdicts: of the optimizer's graphs.
        errors: kind of call -> the first line of what was raised.
        tracebacks: likewise, in full.
    """

    all_reduces: dict[str, tuple[int, int]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, bool] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    graphs: int = 0
    breaks: int = 0
    verdicts: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    tracebacks: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def checking(self, call: str) -> Iterator[None]:
        """Keeps what is raised within; other calls are still made."""
        try:
            yield
        except Exception as error:
            self.errors.setdefault(call, _first_line(error))
            self.tracebacks.setdefault(call, traceback.format_exc())


def _first_line(error: BaseException) -> str:
    """Of what a back end raised, where Dynamo wraps it."""
    cause = getattr(error, "inner_exception", error)
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause) else ''}"


def run(
    _: Any,
    kind: str,
    name: str,
    door: str,
    folder: str,
    dtypes: Sequence[str] = tuple(DTYPES),
    caches: Sequence[str] = CACHES,
) -> Outcome:
    """Everything that is measured of one subject behind one door, on one rank."""
    _as_launched()
    chosen, outcome = subject(kind, name, Path(folder)), Outcome()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in dtypes:
            _call(chosen, DOORS[door], dtype, outcome)
        for cache in caches if chosen.generates else ():
            _generate(chosen, DOORS[door], cache, outcome)
    return outcome


def _as_launched() -> None:
    """The environment that torchrun gives, which transformers reads; no messages of its own."""
    rank, ranks = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _call(chosen: Subject, door: Door, dtype: str, outcome: Outcome) -> None:
    """Logits in every state, and what runs for them."""
    with outcome.checking(dtype):
        eager, model = (chosen.build(DTYPES[dtype]) for _ in range(2))
        called = partial(door.called, **chosen.declared)
        with _opened(called, door, model, outcome) as through:
            for state, context in chosen.states.items():
                name = f"{state} {dtype}".strip()
                with outcome.checking(name):
                    with context(eager):
                        expected, seconds = _timed(partial(chosen.logits, eager))
                        before = all_reduces(partial(chosen.logits, eager))
                    with context(model):
                        logits, first = _timed(partial(chosen.logits, through))
                        after = all_reduces(partial(chosen.logits, through))
                    outcome.all_reduces[name] = (before, after)
                    outcome.differences[name] = _difference(logits, expected)
                    outcome.seconds.setdefault("eager", seconds[0])
                    outcome.seconds.setdefault("door", first[0])
                    outcome.seconds.setdefault("door cpu", first[1])


def _generate(chosen: Subject, door: Door, cache: str, outcome: Outcome) -> None:
    """Tokens, greedily: the first time and the second, when nothing is left to compile."""
    options = {"max_new_tokens": GENERATED, "do_sample": False, "eos_token_id": None}
    options |= {"pad_token_id": 0, "cache_implementation": cache}
    with outcome.checking(cache):
        eager, model = (chosen.build(torch.float32) for _ in range(2))
        expected = eager.generate(_prompt(), **options)
        before = all_reduces(lambda: eager.generate(_prompt(), **options))
        with _opened(door.generating, door, model, outcome) as through:
            tokens = [through.generate(_prompt(), **options)]
            after = all_reduces(lambda: tokens.append(through.generate(_prompt(), **options)))
        outcome.all_reduces[cache] = (before, after)
        outcome.tokens[cache] = all(torch.equal(x, expected) for x in tokens)


@contextmanager
def _opened(
    how: Callable[[Model], Model], door: Door, model: Model, outcome: Outcome
) -> Iterator[Model]:
    """The model behind a door, with no graph of others; afterwards, what was made for it."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    through = how(model)
    yield through
    counters = torch._dynamo.utils.counters
    verdicts = door.verdicts(through) if door.verdicts else []
    outcome.graphs += counters["stats"]["unique_graphs"] or len(verdicts)
    outcome.breaks += sum(counters["graph_break"].values())
    outcome.verdicts += verdicts


def _timed(call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """The result, with seconds of wall and of CPU."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def all_reduces(call: Callable[[], Any]) -> int:
    """How many the profiler sees; Dynamo would skip what runs within a mode that counts."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with _without_stderr(), torch.profiler.profile(activities=cpu) as profile:
        call()
    # Names alone, of a hundred thousand events: profile.events() would take ten times the call.
    names = (event.name() for event in profile.profiler.kineto_results.events())
    return sum(NAMES.get(name.removeprefix("c10d::")) == "all_reduce" for name in names)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """The profiler says on the file itself that it starts and stops."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    largest = (logits.double() - expected.double()).abs().max()
    return float(largest / expected.double().square().mean().sqrt())
