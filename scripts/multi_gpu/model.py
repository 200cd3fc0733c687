"""Step-3.5 at its real size in four forms: outputs compared, then timed in alternating rounds."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench import measure
from bench.kernel_profile import kernels
from compiler.cost import Launch, Machine
from models.step3p5 import Step3p5Config
from scripts.multi_gpu.forms import WRITTEN, Form, forms_of, nudged, same_experts
from scripts.multi_gpu.predictions import busy_us
from scripts.multi_gpu.ranks import Ranks, WrongResultError
from scripts.rank_models import Call, config_of_size, decode_call, prefill_call, random_model

Rows = list[dict[str, Any]]
PREFILL, DECODE = "prefill", "decode"
KEPT = 16
"""Tokens of a prompt whose logits are computed and compared."""
TOLERANCE = 3.0
"""How many times further than a nudged model a form's outputs may be from those as written."""
FAR = 0.5
"""Beyond this difference outputs have nothing to do with each other, and tell nothing."""
FIRST_GUESS_S = 100.0
"""What one kind of call takes at real size: capture, plans, comparison, rounds."""


def config_of(arguments: Namespace) -> Step3p5Config:
    """The model's sizes."""
    return config_of_size(arguments.layers, small=arguments.small)


def dtype_of(arguments: Namespace) -> torch.dtype:
    """The model's dtype. Without GPUs there is no grouped matrix product of bf16 to try."""
    return torch.float32 if arguments.small and arguments.device == "cpu" else torch.bfloat16


def measured_model(
    ranks: Ranks, machine: Machine, arguments: Namespace, write: Callable[[Rows], None]
) -> None:
    """Times every kind of call for every way of dealing out experts, as long as there is time.

    Args:
        ranks: all ranks.
        machine: what plans are made for.
        arguments: the command's options.
        write: takes the rows of one kind of call; called on all ranks.
    """
    needed_s = 0.0 if arguments.small else FIRST_GUESS_S
    wanted, dtype = list(kinds_of(arguments)), dtype_of(arguments)
    if not ranks.graphs and arguments.decode:
        ranks.skip("model: CUDA graphs of decode, which runs eagerly: " + ranks.no_graphs)
    for experts in arguments.experts:
        remedy = f"run again with --parts model,predictions --experts {experts}"
        if not ranks.enough_time(f"model, experts {experts}", needed_s, remedy):
            continue
        with torch.no_grad():
            model = random_model(config_of(arguments), str(ranks.device), dtype, experts)
        ranks.tell(f"weights made, experts by {experts}, {dtype}")
        for kind, sizes in wanted:
            listed = ",".join(map(str, sizes))
            what = f"model, experts {experts}, {kind} {listed}"
            other = DECODE if kind == PREFILL else PREFILL
            again = f"{remedy} --{kind} {listed} --{other} ''"
            if not ranks.enough_time(what, needed_s, again):
                continue
            start = time.perf_counter()
            ranks.tell(what)
            try:
                write(section(ranks, model, machine, arguments, kind, sizes))
            except WrongResultError as error:
                ranks.fail(what, error)
            needed_s = ranks.agreed(max(needed_s, time.perf_counter() - start))
        del model
        if ranks.cuda:
            torch.cuda.empty_cache()


def kinds_of(arguments: Namespace) -> Iterator[tuple[str, list[int]]]:
    """Kinds of calls that share a capture; a batch of one is a graph of its own."""
    batches = [n for n in arguments.decode if n > 1]
    yield from [(PREFILL, arguments.prefill)] if arguments.prefill else []
    yield from [(DECODE, batches)] if batches else []
    yield from [(DECODE, [1])] if 1 in arguments.decode else []


def section(
    ranks: Ranks, model: Any, machine: Machine, arguments: Namespace, kind: str, sizes: list[int]
) -> Rows:
    """Rows of all forms at all sizes of one kind of call."""
    device = str(ranks.device)
    torch.manual_seed(0)  # the same tokens on all ranks
    calls: dict[int, Call] = {}
    for n in sizes:
        if kind == PREFILL:
            calls[n] = prefill_call(n, model.config.vocab_size, device, KEPT)
        else:
            calls[n] = decode_call(model, n, arguments.context, device)
    graph = kind == DECODE and ranks.graphs
    launch = Launch.GRAPH if graph else Launch.EAGER
    forms = forms_of(model, calls[max(calls)], machine, launch, ranks)
    rows = Rows()
    for n, call in calls.items():
        times = timed(ranks, model, forms, call, arguments.rounds, graph=graph)
        for name, measured in times.items():
            sent = [[*key, count] for key, count in sorted(forms[name].sends(n).items())]
            about = {
                "experts": model.experts, "call": kind, "tokens": n, "form": name,
                "launch": str(launch), "verdict": forms[name].verdict,
                "machine": machine.name, "collectives": sent, "context": arguments.context,
                "tokens_s": n / measured["time_us"] * 1e6,
            }  # fmt: skip
            rows.append(about | measured)
            ranks.tell(
                f"{kind} {n}, {name}: {measured['time_us'] / 1e3:.3f} ms, ratio "
                f"{measured['ratio']:.3f}, difference {measured['difference']:.1e}"
            )
    return rows


class Runner:
    """One form on one call, captured in a CUDA graph if wanted.

    Attributes:
        outputs: what the last run left.
    """

    def __init__(self, run: Callable[..., Tensor], call: Call) -> None:
        """Nothing runs yet."""
        self.run, self.call = run, call
        self.outputs: Tensor | None = None
        self.launched: Callable[[], object] = self.eager

    def eager(self) -> None:
        """Runs the form."""
        with torch.no_grad():
            self.outputs = self.run(*self.call[0], **self.call[1])

    def result(self) -> Tensor:
        """A copy of the outputs of one run."""
        self.launched()
        assert self.outputs is not None, "a run has outputs"
        return self.outputs.to(torch.float64, copy=True)


def timed(
    ranks: Ranks, model: Any, forms: dict[str, Form], call: Call, rounds: int, *, graph: bool
) -> dict[str, dict[str, Any]]:
    """Form -> what was measured, once the outputs of all forms agree."""
    runners = {name: Runner(form.run, call) for name, form in forms.items()}
    with same_experts(model):
        wanted = runners[WRITTEN].result()
        sensitivity = apart(Runner(nudged(model), call).result(), wanted, ranks)
        differences = {name: apart(r.result(), wanted, ranks) for name, r in runners.items()}
        if graph:
            for name, runner in runners.items():
                runner.launched = measure.in_graph(runner.eager, 1, ranks.device)
                replayed = apart(runner.result(), wanted, ranks)
                differences[name] = max(differences[name], replayed)
    refuse_unless_equal(differences, sensitivity)
    by_name: dict[str, dict[str, Any]] = {}
    for name, runner in runners.items():
        for _ in range(2):
            runner.launched()
        seen = ranks.gathered(kernels(runner.launched, ranks.device.type))
        by_name[name] = {
            "difference": differences[name],
            "allowed": TOLERANCE * sensitivity,
            **{key: statistics.median(one[key] for one in seen) for key in seen[0]},
            "communication_by_rank_us": [one["communication_us"] for one in seen],
        }
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(rounds):
        order = [*runners][turn % len(runners) :] + [*runners][: turn % len(runners)]
        for name in order:
            taken[name].append(ranks.time_us(runners[name].launched, 10 if graph else 1))
    for name, times in taken.items():
        ratios = [a / b for a, b in zip(taken[WRITTEN], times, strict=True)]
        by_name[name] |= {
            "rounds_us": times,
            "time_us": statistics.median(times),
            "ratio": statistics.median(ratios),
            "communication_share": None
            if ranks.shared  # they wait for each other's turn on it
            else by_name[name]["communication_us"] / busy_us(by_name[name]),
        }
    return by_name


def apart(output: Tensor, wanted: Tensor, ranks: Ranks) -> float:
    """Root mean square of the difference over that of ``wanted``, the largest of all ranks."""
    gap = float(((output - wanted).pow(2).mean() / wanted.pow(2).mean()).sqrt())
    return ranks.largest(float("inf") if gap != gap else gap)


def refuse_unless_equal(differences: dict[str, float], sensitivity: float) -> None:
    """Raise WrongResultError unless every form's outputs are as near as equal forms' are.

    Args:
        differences: form -> how far its outputs are from those as written.
        sensitivity: how far those of the nudged model are.
    """
    limit = min(TOLERANCE * sensitivity, FAR)
    for name, difference in differences.items():
        if not difference <= limit:
            raise WrongResultError(
                f"outputs of the form {name!r} differ from those as written",
                found=f"relative root mean square {difference:.3g}; allowed is {limit:.3g}: "
                f"{TOLERANCE:g} times what moving all summands of all_reduces by one unit in the "
                f"last place does, at most {FAR}",
                remedy="this kind of call was not timed; find the wrong pass or kernel",
            )
