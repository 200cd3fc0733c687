import gc

import pytest

from compiler.garbage import collection_paused


@collection_paused()
def collects(*, again: bool) -> bool:
    """Whether garbage is collected in here, however often collection was paused."""
    return gc.isenabled() or (again and collects(again=False)) or gc.isenabled()


@collection_paused()
def fails() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_paused_and_goes_on_as_it_was(enabled: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        assert not collects(again=True)
        assert gc.isenabled() is enabled
        with pytest.raises(ZeroDivisionError):
            fails()
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
