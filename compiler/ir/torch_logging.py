"""Without what PyTorch logs and prints about exceptions that become errors of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

FAKE_TENSORS, PROGRAMS = "torch._subclasses.fake_tensor", "torch.export"
"""Loggers that print the traceback of what is raised anyway."""


@contextmanager
def unlogged(*names: str) -> Iterator[None]:
    """Silence the loggers of these names."""
    with ExitStack() as stack:
        for log in map(logging.getLogger, names):
            stack.callback(setattr, log, "disabled", log.disabled)
            log.disabled = True
        yield


@contextmanager
def unprinted() -> Iterator[None]:
    """Keep export from printing the graph that it had when it failed; models may print."""
    import torch.export._trace  # and with it Dynamo, of which the rest of the compiler runs nothing

    names = vars(torch.export._trace)
    names["print"] = lambda *_, **__: None  # its own, in the place of the builtin
    try:
        yield
    finally:
        del names["print"]
