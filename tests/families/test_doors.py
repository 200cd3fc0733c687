"""Two families as transformers loads them, unmodified, behind both doors, on two ranks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.bench_families import TOLERANCES, measured
from scripts.doors import GENERATED, Outcome
from tests.families.families import FAMILIES
from tests.support.gloo import GlooPool

ALL_REDUCES = {"Llama": (5, 5), "GLM4-MoE": (6, 5)}
"""Dense, and with shared experts -> all_reduces of one call before and after."""


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[GlooPool]:
    """Ranks that are the whole world, as transformers shards over all of it."""
    pool = GlooPool(2)
    yield pool
    pool.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("families")
    for name in ALL_REDUCES:
        FAMILIES[name].save(path / name)
    return path


@pytest.mark.parametrize("door", ["optimize", "compile"])
@pytest.mark.parametrize("name", [pytest.param("Llama", marks=pytest.mark.campaign), "GLM4-MoE"])
def test_unmodified_models_are_merged_and_generate_the_same_tokens(
    name: str, door: str, two_ranks: GlooPool, folder: Path
) -> None:
    outcome = measured("family", name, door, str(folder), two_ranks, ("fp32",), ("dynamic",))
    assert not outcome.tracebacks, "\n".join(outcome.tracebacks.values())
    before, after = ALL_REDUCES[name]
    assert outcome.all_reduces == {
        "fp32": (before, after), "dynamic": (GENERATED * before, GENERATED * after)
    }  # fmt: skip
    assert outcome.differences["fp32"] < TOLERANCES["fp32"]
    assert outcome.tokens == {"dynamic": True}
    assert set(outcome.verdicts) <= {"EQUIVALENT", "IDENTICAL"}
    assert outcome.verdicts
    assert not outcome.breaks


def test_a_door_that_fails_says_where(two_ranks: GlooPool, folder: Path) -> None:
    outcome = measured("family", "Llama", "unheard-of", str(folder), two_ranks)
    assert isinstance(outcome, Outcome)
    assert outcome.errors == {"ranks": "KeyError: 'unheard-of'"}
