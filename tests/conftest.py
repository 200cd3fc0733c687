"""Fixtures and options shared by all tests."""

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tests.support.gloo import GlooPool
from tests.support.seeds import IN_CAMPAIGN


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-cases",
        action="store_true",
        help="rewrite the AFTER blocks of *.spmd case files; read the diff before committing",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for campaigns, and let workers of pytest-xdist take whole files.

    One of the workers takes all tests that start ranks.
    """
    left_out = [x for x in items if not IN_CAMPAIGN and x.get_closest_marker("campaign")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        on_ranks = {"gloo_pool", "two_ranks"} & set(getattr(item, "fixturenames", ()))
        item.add_marker(pytest.mark.xdist_group("ranks" if on_ranks else str(item.path)))


@pytest.fixture
def update_cases(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-cases"))


@pytest.fixture(autouse=True)
def _needs_gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def gloo_pool() -> Iterator[Callable[[int], SimpleNamespace]]:
    """``gloo_pool(size).run(function, *args)``: results of ``function(group, *args)`` by rank."""
    pool = GlooPool()
    yield lambda size: SimpleNamespace(run=partial(pool.run, size))
    pool.stop()
