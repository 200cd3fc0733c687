"""Times a model as written, merged and planned, in turns, on the ranks that run it.

All ranks run the same calls in lockstep: what a round takes is what its slowest rank takes. Forms
take turns within each round, and each round begins with another, so that what drifts meets all.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from torch.utils._pytree import tree_leaves

from bench import measure
from bench.kernel_profile import kernels
from compiler.cost import Launch, Machine, MachineError
from compiler.cost.units import PS_PER_US
from compiler.errors import CommPlanError
from compiler.optimize import optimize_allreduce
from compiler.optimize.validation import device_of, planner_options
from compiler.plan.planner import Planner
from compiler.plan.spending import Totals
from compiler.runtime.counting import count_collectives
from compiler.runtime.guarded_graph import GuardedGraph

WRITTEN, MERGED, PLANNED = "as written", "merged", "planned"
FIELDS = {WRITTEN: "as_written", MERGED: "merged", PLANNED: "planned"}
"""Form -> field of ``Totals``."""
TARGET_S, MAX_CALLS = 0.02, 50
"""How long a form's part of a round should take, and how many calls that may be."""

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True)
class MeasuredForm:
    """What one form of the model took.

    Attributes:
        name: as written, merged or planned.
        verdict: the checker's; empty for the model itself.
        rounds_us: per round, the mean of its calls on the slowest rank.
        speedup: per round, the time as written over this.
        collectives: kind -> how many ran in one call.
        fused: how many of these were part of a kernel that does more.
        payload_bytes: of all of them.
        communication_share: part of a call in which a collective ran, waiting for ranks included.
        predicted_us: what the machine's tables say; None without a machine.
        difference: root mean square of the outputs less those as written, over that of these.
    """

    name: str
    verdict: str
    rounds_us: tuple[float, ...]
    speedup: tuple[float, ...]
    collectives: Mapping[str, int]
    fused: int
    payload_bytes: int
    communication_share: float
    predicted_us: float | None
    difference: float

    @property
    def median_us(self) -> float:
        """The median round."""
        return statistics.median(self.rounds_us)


@dataclass(frozen=True)
class Measured:
    """A model in all its forms.

    Attributes:
        device: name of the device.
        ranks: how many.
        launch: how kernels were launched.
        tokens: of the call; None where no single size counts them.
        machine: what plans were made for, and predictions by.
        calls: in each round, of each form.
        forms: in the order of their names above.
        notes: why something is missing.
    """

    device: str
    ranks: int
    launch: str
    tokens: int | None
    machine: str | None
    calls: int
    forms: tuple[MeasuredForm, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Runner:
    """A form that runs one call again and again, each time with arguments of its own.

    Attributes:
        run: the form.
        call: arguments, which are copied: a model may write to its caches.
        device: where it runs.
        verdict: the checker's.
        replay: the captured CUDA graph, where calls are launched so.
    """

    run: Callable[..., Any]
    call: Call
    device: torch.device
    verdict: str = ""
    replay: Callable[[], object] | None = None
    rounds_us: list[float] = field(default_factory=list)

    def outputs(self) -> list[torch.Tensor]:
        """Floating-point outputs of a call, and of what it wrote to its arguments."""
        args, kwargs = copy.deepcopy(self.call)
        with torch.no_grad():
            result = self.run(*args, **kwargs)
        leaves = tree_leaves((result, args, kwargs))
        return [x.double() for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]

    def capture(self) -> None:
        """Capture one call in a CUDA graph; from then on it is replayed."""
        args, kwargs = copy.deepcopy(self.call)

        def one() -> None:
            with torch.no_grad():
                self.run(*args, **kwargs)

        self.replay = measure.in_graph(one, 1, self.device)

    def prepared(self, calls: int) -> Callable[[], object]:
        """Return what makes the next of so many calls; arguments are copied here."""
        if self.replay is not None:
            return self.replay
        arguments = [copy.deepcopy(self.call) for _ in range(calls)]

        def one() -> None:
            args, kwargs = arguments.pop()
            with torch.no_grad():
                self.run(*args, **kwargs)

        return one


def measured_forms(
    model: nn.Module,
    call: Call,
    *,
    machine: str | Machine | None = "auto",
    launch: str = "eager",
    rounds: int = 10,
    group: ProcessGroup | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Run a model as written, merged and planned, and measure each. All ranks call it together.

    Args:
        model: tensor-parallel, with its weights.
        call: its positional and keyword arguments.
        machine: what plans are made for, as ``optimize_allreduce`` takes it.
        launch: run calls one by one, "eager", or replay them from a CUDA "graph".
        rounds: how often every form has its turn.
        group: process group of all ranks that call this; default: all ranks of the job.
        tell: called with what is being done.

    Raises:
        CommPlanError: the model has no weights, or CUDA graphs are asked for without CUDA.
    """
    group = group or dist.group.WORLD
    assert group is not None, "the process group is initialized"
    device = _device_of(model, launch)
    runners, prepared = _forms(model, call, device, machine, launch, group, tell)
    expected = runners[WRITTEN].outputs()
    differences = {
        name: _apart(r.outputs(), expected, group, device) for name, r in runners.items()
    }
    counts = {name: _counts(runner) for name, runner in runners.items()}
    for runner in runners.values() if launch == Launch.GRAPH else ():
        runner.capture()
    shares = {name: _share(runner, group) for name, runner in runners.items()}
    once = measure.slowest(
        measure.seconds_of(runners[WRITTEN].prepared(1), 1, device), group, device
    )
    calls = max(1, min(MAX_CALLS, int(TARGET_S / max(once, 1e-7))))
    for turn in range(rounds):
        tell(f"round {turn + 1} of {rounds}")
        order = list(runners)
        for name in (*order[turn % len(order) :], *order[: turn % len(order)]):
            runner = runners[name]
            one = runner.prepared(calls)
            dist.barrier(group)
            seconds = measure.seconds_of(one, calls, device)
            runner.rounds_us.append(measure.slowest(seconds, group, device) / calls * 1e6)
    totals, tokens, named, notes = _predicted(prepared, machine, launch, device)
    written = runners[WRITTEN].rounds_us
    forms = tuple(
        MeasuredForm(
            name, runner.verdict, tuple(runner.rounds_us),
            tuple(a / b for a, b in zip(written, runner.rounds_us, strict=True)),
            dict(counts[name].collectives), counts[name].fused.total(),
            counts[name].payload_bytes.total(), shares[name],
            None if totals is None else getattr(totals, FIELDS[name]) / PS_PER_US,
            differences[name],
        )
        for name, runner in runners.items()
    )  # fmt: skip
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Measured(title, group.size(), launch, tokens, named, calls, forms, notes)


def _device_of(model: nn.Module, launch: str) -> torch.device:
    device = device_of(model) or torch.device("cpu")
    if device.type == "meta":
        raise CommPlanError(
            "the model has no weights to run with",
            found="its first parameter is on the meta device",
            remedy="return a model with weights, random ones will do, from the factory",
        )
    if launch == Launch.GRAPH and device.type != "cuda":
        raise CommPlanError(
            "calls are replayed from CUDA graphs on CUDA alone",
            found=f"a model on {device.type}",
            remedy="leave --launch graph out",
        )
    return device


def _forms(
    model: nn.Module,
    call: Call,
    device: torch.device,
    machine: str | Machine | None,
    launch: str,
    group: ProcessGroup,
    tell: Callable[[str], None],
) -> tuple[dict[str, _Runner], GuardedGraph]:
    """Return the forms, captured and proved, and what the planned one prepared for the call."""
    runners = {WRITTEN: _Runner(model, call, device)}
    for name, options in (
        (MERGED, {"policy": "merge", "machine": None}),
        (PLANNED, {"machine": machine, "launch": launch}),
    ):
        tell(f"{name}: captured, planned and proved")
        form = optimize_allreduce(model, group=group, **options)
        args, kwargs = copy.deepcopy(call)
        prepared = form.prepare_call(*args, **kwargs)
        runners[name] = _Runner(form, call, device, str(prepared.report.verdict))
    return runners, prepared


def _apart(
    outputs: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    group: ProcessGroup,
    device: torch.device,
) -> float:
    """Return the relative difference of outputs, the largest of all ranks'."""
    gap = sum(float((a - b).square().sum()) for a, b in zip(outputs, expected, strict=True))
    norm = sum(float(b.square().sum()) for b in expected)
    return measure.slowest((gap / norm) ** 0.5 if norm else gap, group, device)


def _counts(runner: _Runner) -> Any:
    one = runner.prepared(1)
    with count_collectives() as counts:
        one()
    return counts


def _share(runner: _Runner, group: ProcessGroup) -> float:
    """Return the part of a call in which collectives ran, the median over ranks."""
    runner.prepared(1)()
    one = runner.prepared(1)
    dist.barrier(group)
    profiled = kernels(one, runner.device.type)
    share = profiled["communication_us"] / (profiled.get("busy_us") or profiled["call_us"])
    everyone = [share] * group.size()
    dist.all_gather_object(everyone, share, group=group)
    return statistics.median(everyone)


def _predicted(
    prepared: GuardedGraph, machine: str | Machine | None, launch: str, device: torch.device
) -> tuple[Totals | None, int | None, str | None, tuple[str, ...]]:
    """Return what the machine's tables say of the call, its tokens, the machine, and why not."""
    options, tokens = (
        planner_options("cost", machine, launch, device=device),
        prepared.report.tokens,
    )
    if options.machine is None:
        return None, tokens, None, ("no machine: plans compare by bytes, and nothing is predicted",)
    captured = prepared.captured
    planner = Planner(captured.graph, options, sizes=captured.ranges)
    try:
        totals = planner.totals(planner.plan_for(tokens), tokens)
    except MachineError as error:
        return None, tokens, options.machine.name, (f"nothing is predicted: {error.what}",)
    return totals, tokens, options.machine.name, ()
