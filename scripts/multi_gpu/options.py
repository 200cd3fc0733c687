"""Options of ``scripts/bench_multi_gpu``; what cannot be run is refused before a rank starts."""

from __future__ import annotations

import argparse
import os
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compiler.cost import load_machine
from compiler.errors import CommPlanError
from models.step3p5 import ParallelError
from models.step3p5.model import check_divisible
from models.step3p5.parallel import RankGroup
from scripts.multi_gpu.model import KEPT, config_of, dtype_of

PARTS = ("links", "kernels", "model", "predictions")
MIN_BYTES, MAX_BYTES, MAX_BYTES_SMALL = 512, 1 << 28, 1 << 18
KERNEL_ROWS = [1 << i for i in range(15)]


def parser() -> argparse.ArgumentParser:
    """The options; sizes left out depend on ``--small``."""
    parser_ = argparse.ArgumentParser(
        prog="bench_multi_gpu",
        description="Measures on one node all that takes several GPUs: links, fused kernels and "
        "Step-3.5-Flash; compares it with what machine files predict.",
    )
    add = parser_.add_argument
    add("--ranks", type=least(2), help="default: one per GPU; 2 without GPUs")
    add("--parts", type=some_of(*PARTS), default=list(PARTS),
        help=f"some of {','.join(PARTS)}; default: all")  # fmt: skip
    add("--output", type=Path, default=Path("out/multi_gpu"), help="folder; default: %(default)s")
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is a GPU")
    add("--small", action="store_true", help="a small model and few sizes, for a trial")
    add("--experts", type=some_of("tp", "ep"), default=["tp", "ep"],
        help="experts cut over the ranks (tp), whole on one each (ep); default: tp,ep")  # fmt: skip
    add("--layers", type=least(1), help="decoder layers; default: all 45, 5 of a small model")
    add("--prefill", type=several(KEPT), help="tokens; '' for none; default: 2048,8192,16384")
    add("--decode", type=several(1), help="batch sizes; '' for none; default: 1,64,256")
    add("--context", type=least(1), help="tokens in the cache; default: 1024")
    add("--rows", type=several(1), help="of fused kernels; default: 1 to 16384")
    add("--rounds", type=least(1), default=5, help="alternating rounds; default: 5")
    add("--max-bytes", type=least(MIN_BYTES), help="largest payload on links; default: 256 MiB")
    add("--machine", help="plans and predictions; default: the measured one, else --compare")
    add("--compare", help="a known machine to compare with; default: that of the GPUs")
    add("--budget-s", type=least(1), default=570, help="seconds; default: 570")
    add("--begun-s", type=float, default=time.time(), help=argparse.SUPPRESS)
    return parser_


def least(minimum: int) -> Callable[[str], int]:
    """Reads a whole number not below ``minimum``."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < minimum:
            raise ArgumentTypeError(f"found {number}; the least is {minimum}")
        return number

    return read


def several(minimum: int) -> Callable[[str], list[int]]:
    """Reads whole numbers between commas, ascending, each once; none from an empty text."""
    read_one = least(minimum)
    return lambda text: sorted({read_one(one) for one in text.split(",")} if text else ())


def some_of(*names: str) -> Callable[[str], list[str]]:
    """Reads names between commas, in the order of ``names``."""

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        for one in chosen:
            if one not in names:
                raise ArgumentTypeError(f"unknown {one!r}; known: {', '.join(names)}")
        return [one for one in names if one in chosen]

    return read


def completed(arguments: argparse.Namespace) -> argparse.Namespace:
    """Options with what they default to here.

    Raises:
        CommPlanError: a part cannot run here, or the model not on this number of ranks.
    """
    small, parts = arguments.small, {*arguments.parts}
    arguments.device = device_of(arguments)
    defaults: dict[str, Any] = {
        "ranks": torch.cuda.device_count() if arguments.device == "cuda" else 2,
        "prefill": [32, 64] if small else [2048, 8192, 16384],
        "decode": [1, 4] if small else [1, 64, 256],
        "context": 32 if small else 1024,
        "rows": [1, 8, 64] if small else KERNEL_ROWS,
        "max_bytes": MAX_BYTES_SMALL if small else MAX_BYTES,
    }
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if "WORLD_SIZE" in os.environ:
        arguments.ranks = int(os.environ["WORLD_SIZE"])
    if arguments.ranks < 2 and parts != {"predictions"}:
        raise CommPlanError(
            "one rank sends nothing",
            found=f"{torch.cuda.device_count()} GPUs, {arguments.ranks} ranks",
            remedy="--ranks 2: ranks that share a GPU talk over gloo, for a trial",
        )
    if "kernels" in parts and not arguments.rows:
        raise CommPlanError("the kernels part needs --rows", remedy="name some, or another part")
    if "model" in parts:
        fits(arguments)
    for name in filter(None, (arguments.machine, arguments.compare)):
        load_machine(name)
    return arguments


def device_of(arguments: argparse.Namespace) -> str:
    """The kind of device that is named, else the one there is."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise CommPlanError("there is no CUDA device", remedy="leave --device out")
    if device == "cpu" and not arguments.small and {"links", "model"} & {*arguments.parts}:
        raise CommPlanError(
            "without GPUs only a trial is possible", remedy="add --small, for a small model"
        )
    return str(device)


def fits(arguments: argparse.Namespace) -> None:
    """Raises CommPlanError unless there are calls, and the model divides over the ranks."""
    if not arguments.prefill and not arguments.decode:
        raise CommPlanError("the model part needs --prefill or --decode", found="both are empty")
    for experts in arguments.experts:
        try:
            ranks = RankGroup(None, 0, arguments.ranks)
            check_divisible(config_of(arguments), ranks, experts, dtype_of(arguments))
        except ParallelError as error:
            raise CommPlanError(
                f"the model does not divide over {arguments.ranks} ranks, experts by {experts}",
                found=str(error),
                remedy="give another number of --ranks, or leave model out of --parts",
            ) from None
