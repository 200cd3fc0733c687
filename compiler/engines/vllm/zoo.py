"""Lint of every architecture of vLLM that can be built here: what was traced, and what was found.

Each is captured in a process of its own, forked from one that has imported vLLM.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty
from typing import Any

from compiler.engines.vllm import world
from compiler.errors import CommPlanError

TIMEOUT_S = 600
"""Of one architecture."""


@dataclass(frozen=True)
class Linted:
    """What became of one architecture.

    Attributes:
        architecture: as vLLM's registry calls it.
        ranks: of tensor parallelism.
        findings: as text.
        refusal: why it was not captured; empty if it was.
        reductions: number of all_reduces in the graph.
        percent: coverage.
        seconds: wall time.
    """

    architecture: str
    ranks: int = 0
    findings: tuple[str, ...] = ()
    refusal: str = ""
    reductions: int = 0
    percent: int = 0
    seconds: float = field(default=0.0, compare=False)


def architectures() -> list[str]:
    """Return one architecture for each class of models that generate text."""
    from vllm.model_executor.models import registry

    tables: Mapping[str, Mapping[str, Any]] = vars(registry)
    names = {**tables["_TEXT_GENERATION_MODELS"], **tables["_MULTIMODAL_MODELS"]}
    of_class = {where: name for name, where in reversed(names.items())}
    return sorted(of_class.values())


def linted(names: Iterable[str], ranks: int) -> Iterator[Linted]:
    """Yield what becomes of each architecture, in order.

    Args:
        names: architectures.
        ranks: of tensor parallelism; half as many where a config's sizes are not divisible.
    """
    world.prepare_process()
    import vllm.model_executor.models.registry  # noqa: F401  # once, for all

    context = multiprocessing.get_context("fork")
    for name in names:
        results: Any = context.Queue()
        process = context.Process(target=_lint, args=(name, ranks, results), daemon=True)
        started = time.perf_counter()
        process.start()
        try:
            yield results.get(timeout=TIMEOUT_S)
        except Empty:
            seconds = time.perf_counter() - started
            yield Linted(name, refusal=f"more than {TIMEOUT_S} s", seconds=seconds)
        process.kill()
        process.join()


def _lint(name: str, ranks: int, results: Any) -> None:
    from compiler.analysis.statistics import statistics
    from compiler.engines.vllm.capture import capture
    from compiler.engines.vllm.configs import write_config
    from compiler.linter import LintFacts, coverage, findings_of

    started = time.perf_counter()
    result = Linted(name)
    while ranks > 1 and not result.ranks:
        try:
            with tempfile.TemporaryDirectory() as folder:
                write_config(name, Path(folder), {})
                captured = capture(Path(folder), ranks)
            facts = LintFacts(captured.graph)
            findings = tuple(str(one) for one in findings_of(facts, captured.mutations))
            reductions = statistics(captured.graph.graph).all_reduces
            result = Linted(name, ranks, findings, "", reductions, coverage(facts).percent)
        except CommPlanError as error:
            result = Linted(name, refusal=" ".join(f"{error.what}: {error.found}".split()))
        except Exception as error:
            text = " ".join(str(error).split())
            result = Linted(name, refusal=f"commplan: {type(error).__name__}: {text}")
        ranks = ranks // 2 if "divisible" in result.refusal else 1
    results.put(replace(result, seconds=time.perf_counter() - started))
    results.close()
    results.join_thread()
