"""Fixtures shared by all tests."""

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import pytest

from tests.gloo import GlooPool


@pytest.fixture(scope="session")
def gloo_pool() -> Iterator[Callable[[int], SimpleNamespace]]:
    """``gloo_pool(size).run(function, *args)``: results of ``function(group, *args)`` by rank."""
    pool = GlooPool()
    yield lambda size: SimpleNamespace(run=partial(pool.run, size))
    pool.stop()
