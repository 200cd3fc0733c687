"""Without the logs of PyTorch about exceptions that become errors of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

FAKE_TENSORS, PROGRAMS = "torch._subclasses.fake_tensor", "torch.export"
"""Loggers that print the traceback of what is raised anyway."""


@contextmanager
def unlogged(*names: str) -> Iterator[None]:
    """Within it, the loggers of these names say nothing."""
    with ExitStack() as stack:
        for log in map(logging.getLogger, names):
            stack.callback(setattr, log, "disabled", log.disabled)
            log.disabled = True
        yield
