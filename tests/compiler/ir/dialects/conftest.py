from collections.abc import Iterator

import pytest

from tests.support.foreign_ops import forgotten_entries


@pytest.fixture(autouse=True)
def _own_entries() -> Iterator[None]:
    with forgotten_entries():
        yield
