"""Whether dictionaries were written: versions of them, and a count of all writes where it is told.

Up to Python 3.11 a dictionary has a version, which torch reads. Later ones tell a watcher of every
write (``PyDict_AddWatcher``; torch has one for its own guards, which looks up every dictionary at
every call). Here one watcher counts: where nothing was written, a call compares one number.
"""

from __future__ import annotations

import atexit
import ctypes
import sys
from typing import Any

import torch._C._dynamo.guards as guards

HELD_BY_OBJECTS = sys.version_info >= (3, 13)
"""Attributes may stand in the object itself, and writes to them there are not told."""

DEALLOCATED = 5
"""``PyDict_EVENT_DEALLOCATED``: the dictionary ends."""

count = 0
"""Writes of watched dictionaries so far."""
_counts: dict[int, int] = {}


def _written(event: int, dictionary: int, key: int, value: int) -> int:
    """Count a write; called by the interpreter in the middle of it, so that it must not fail."""
    global count
    if event == DEALLOCATED:  # who compares versions keeps the dictionary
        _counts.pop(dictionary, None)
        return 0
    count += 1
    _counts[dictionary] = count
    return 0


_callback = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
)(_written)


def _watcher() -> int | None:
    """The number of a watcher; None where there are none, or no more."""
    try:
        number = int(ctypes.pythonapi.PyDict_AddWatcher(_callback))
    except (AttributeError, RuntimeError):
        return None
    atexit.register(ctypes.pythonapi.PyDict_ClearWatcher, number)  # before Python ends
    return number


_number = _watcher()
are_told = _number is not None
"""Whether ``count`` counts."""


def move_attributes(dictionary: dict[Any, Any]) -> None:
    """Move an object's attributes into its ``__dict__``, if they may stand elsewhere."""
    if HELD_BY_OBJECTS:  # a key that is not a string does
        dictionary[0] = None
        del dictionary[0]


def watch(dictionary: dict[Any, Any]) -> None:
    """Have writes of ``dictionary`` told from here on; it may be watched already."""
    if _number is not None:
        ctypes.pythonapi.PyDict_Watch(_number, ctypes.py_object(dictionary))


def version(dictionary: dict[Any, Any]) -> object:
    """Return what differs after a write of a watched dictionary."""
    if are_told:
        return _counts.get(id(dictionary), 0)
    try:
        return guards.dict_version(dictionary)
    except AttributeError:
        return object()  # nothing tells: taken for written
