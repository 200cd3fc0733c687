from collections.abc import Iterator

import pytest

from compiler.ir.dialects import register_ops
from compiler.ir.dialects.registry import REGISTERED, load_installed


@pytest.fixture(autouse=True)
def _own_entries() -> Iterator[None]:
    """What a test declares is forgotten after it."""
    load_installed()
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    register_ops(before)
