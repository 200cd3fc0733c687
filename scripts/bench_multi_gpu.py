"""All that takes several GPUs, measured on one node: links, kernels, Step-3.5-Flash, predictions.

links        collectives by size: NCCL (gloo on CPUs) and our kernels, in and out of CUDA graphs;
             the fitted machine file, compared with a known one
kernels      fused kernels against an all_reduce, then a compiled addition and RMSNorm
model        Step-3.5-Flash with random weights in four forms, outputs compared, then timed
predictions  what the machine file predicts for these, and which targets are met

Each part writes JSON into the output folder, and predictions reads it from there. Started as it is,
the command starts one rank per GPU; under torchrun it is one of the ranks.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from bench.measurements import machine_text
from compiler.cost import Machine, load_machine, machine_with
from compiler.cost.machine_files import parse_machine
from compiler.errors import CommPlanError
from scripts.multi_gpu import tables
from scripts.multi_gpu.kernels import measured_kernels
from scripts.multi_gpu.links import compared, measured_links
from scripts.multi_gpu.model import config_of, measured_model
from scripts.multi_gpu.options import MIN_BYTES, PARTS, completed, parser
from scripts.multi_gpu.predictions import kernel_rows, link_rows, model_rows
from scripts.multi_gpu.ranks import OTHER_ERROR, USER_ERROR, Ranks, WrongResultError, run_rank
from scripts.multi_gpu.results import MACHINE, Results
from scripts.multi_gpu.targets import targets

KEY = ("experts", "call", "tokens", "form")
"""What tells rows of the model part apart."""
SHARED = "the ranks share a GPU: times say nothing about links"
LINKS_S, KERNELS_S = 90.0, 90.0
"""What these parts are taken to need on eight GPUs."""


def facts_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What results must have in common to be read together."""
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    shared = arguments.device == "cuda" and torch.cuda.device_count() < arguments.ranks
    return {
        "ranks": arguments.ranks,
        "device": name,
        "ranks_share_a_gpu": shared,
        "torch": torch.__version__,
        "layers": config_of(arguments).num_hidden_layers,
    }


def known_machine(arguments: argparse.Namespace) -> Machine | None:
    """The machine that measurements are compared with; None if there is none."""
    if arguments.compare:
        return load_machine(arguments.compare)
    return machine_with(torch.cuda.get_device_name()) if arguments.device == "cuda" else None


def planning_machine(arguments: argparse.Namespace, results: Results) -> Machine:
    """The machine that was named, else the one measured, else the known one."""
    if arguments.machine:
        return load_machine(arguments.machine)
    links = results.read("links")
    if links is not None and links["machine"]["rows"]:
        return parse_machine(links["machine"], results.folder / MACHINE)
    machine = known_machine(arguments)
    if machine is None:
        raise CommPlanError(
            "no machine is known to plan for and to predict by",
            found=f"no results of the links part for these ranks in {results.folder}, and no "
            "machine file for this device",
            remedy="run with --parts links first, or name one with --machine",
        )
    return machine


def links(ranks: Ranks, arguments: argparse.Namespace, results: Results) -> None:
    """Measures links, and writes the machine file."""
    if ranks.shared:
        ranks.skip("links: the ranks share one GPU, and NCCL needs one each")
        return
    if not ranks.enough_time("links", 0 if arguments.small else LINKS_S, "run --parts links alone"):
        return
    sizes = [MIN_BYTES << i for i in range((arguments.max_bytes // MIN_BYTES).bit_length())]
    measured = measured_links(ranks, sizes, f"measured-{ranks.size}")
    if not measured:
        return
    machine = known_machine(arguments)
    if machine is None:
        ranks.skip("comparison of links: no machine file for this device; --compare names one")
    rows = [*measured["machine"]["rows"], *measured["kernels"]]
    beside = compared(rows, machine) if machine else []
    measured |= {"known": machine.name if machine else None, "compared": beside}
    results.write("links", measured)
    results.write_text(MACHINE, machine_text(measured["machine"]))


def kernels(ranks: Ranks, arguments: argparse.Namespace, results: Results) -> None:
    """Measures fused kernels."""
    needed = 0 if arguments.small else KERNELS_S
    if ranks.enough_time("kernels", needed, "run --parts kernels alone"):
        try:
            rows = measured_kernels(ranks, arguments.rows)
        except WrongResultError as error:
            ranks.fail("kernels", error)
            return
        if ranks.rank == 0:
            results.write("kernels", rows)


def model(ranks: Ranks, arguments: argparse.Namespace, results: Results) -> None:
    """Measures the model, kind of call by kind of call."""

    def write(rows: list[dict[str, Any]]) -> None:
        if ranks.rank == 0:
            results.join("model", "rows", rows, KEY)

    torch.distributed.barrier()  # rank 0 may have written the machine just now
    machine = planning_machine(arguments, results)
    ranks.tell(f"plans are made for {machine.name}")
    measured_model(ranks, machine, arguments, write)


def predict(arguments: argparse.Namespace, results: Results) -> None:
    """Reads what the other parts found, and predicts it."""
    parts = {part: results.read(part) for part in PARTS[:3]}
    if not any(parts.values()):
        raise CommPlanError(
            "there is nothing to predict",
            where=str(results.folder),
            found="; ".join(results.passed_over) or "no results of other parts",
            remedy="run with --parts links,kernels,model first",
        )
    facts = results.facts or {}
    if facts["ranks_share_a_gpu"]:
        raise CommPlanError(
            "there is nothing to predict",
            where=str(results.folder),
            found=SHARED,
            remedy="run the parts with one GPU for each rank",
        )
    machine, ranks = planning_machine(arguments, results), facts["ranks"]
    rows = link_rows(machine, (parts["links"] or {"machine": {"rows": []}})["machine"]["rows"])
    rows += kernel_rows(machine, (parts["kernels"] or {"rows": []})["rows"], ranks)
    measured = (parts["model"] or {"rows": []})["rows"]
    rows += model_rows(machine, measured, ranks)
    judged = [vars(one) for one in targets(measured, rows)]
    results.write("predictions", {"machine": machine.name, "rows": rows, "targets": judged})


def show(
    arguments: argparse.Namespace, results: Results, skipped: Sequence[str], failed: Sequence[str]
) -> None:
    """Prints the results of the parts that ran, what was left out, and what went wrong."""
    console = Console(width=170)
    parts = {part: results.read(part) for part in arguments.parts}
    console.print(json.dumps(results.facts), highlight=False)
    if one := parts.get("links"):
        tables.show_links(console, one)
    if one := parts.get("kernels"):
        tables.show_kernels(console, one)
    if one := parts.get("model"):
        tables.show_model(console, one["rows"])
    if one := parts.get("predictions"):
        tables.show_predictions(console, one)
    for what in (*skipped, *results.passed_over):
        console.print(f"skipped: {what}", highlight=False, markup=False)
    for what in failed:
        console.print(f"FAILED: {what}", highlight=False, markup=False)
    console.print(f"JSON: {results.folder}", highlight=False, markup=False)


def as_rank(arguments: argparse.Namespace) -> int:
    """Runs the parts on this rank; the exit code, which tells of wrong results."""
    warnings.simplefilter("ignore")
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    ranks = Ranks(arguments.device, arguments.begun_s, arguments.budget_s)
    results = Results(arguments.output, facts_of(arguments))
    if ranks.shared:
        ranks.tell(f"{ranks.size} ranks on one GPU, over gloo: {SHARED}")
    parts = {"links": links, "kernels": kernels, "model": model}
    for name in (one for one in arguments.parts if one in parts):
        parts[name](ranks, arguments, results)
    if ranks.rank == 0:
        if "predictions" in arguments.parts:
            if ranks.failed and not any(results.read(part) for part in PARTS[:3]):
                ranks.skip("predictions: the parts before failed")
            elif ranks.shared:
                ranks.skip(f"predictions: {SHARED}")
            else:
                predict(arguments, results)
        show(arguments, results, ranks.skipped, ranks.failed)
    torch.distributed.barrier()
    return OTHER_ERROR if ranks.failed else 0


def launched(arguments: argparse.Namespace) -> int:
    """Starts the ranks as torchrun does; the exit code of the one that failed first."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # beyond its highest: progress stays readable
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=arguments.ranks, run_id="bench_multi_gpu",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.2,
    )  # fmt: skip
    command = ["-u", "-m", "scripts.bench_multi_gpu", *sys.argv[1:]]
    try:
        elastic_launch(config, sys.executable)(*command, "--begun-s", str(arguments.begun_s))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:  # the rank has said why
            return int(failure.exitcode) or OTHER_ERROR
        name = signal.Signals(-failure.exitcode).name
        print(f"error: rank {rank} was ended by {name}", file=sys.stderr)
        return OTHER_ERROR
    except SignalException as error:
        name = signal.Signals(error.sigval).name
        print(f"error: ended by {name}; what was finished: {arguments.output}", file=sys.stderr)
        return 128 + error.sigval  # as shells have it
    return 0


def main() -> int:
    """Starts the ranks, or is one of them; prints tables on standard output."""
    arguments = parser().parse_args()
    try:
        completed(arguments)
        Results(arguments.output).prepare()
        if arguments.parts == ["predictions"]:
            results = Results(arguments.output)
            predict(arguments, results)
            show(arguments, results, [], [])
            return 0
    except CommPlanError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return run_rank(lambda: as_rank(arguments)) if "RANK" in os.environ else launched(arguments)


if __name__ == "__main__":
    sys.exit(main())
