"""What went wrong in export, said in terms of the model: the op, the line, the remedy."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

from compiler.errors import CaptureError, CommPlanError
from compiler.ir.access import TORCH, inside

STANDARD_LIBRARY = inside(sysconfig.get_paths()["stdlib"])
HERE = inside(Path(__file__).parent)

KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"data-dependent expression|data dependent|GuardOnDataDependent",
        "the model takes a Python decision on the values of a tensor",
        "compute it with tensor ops (torch.where, masked_fill), or decide before the call",
    ),
    (
        r"async version of inplace op",
        "a collective is started with async_op=True",
        "call it without async_op, or use torch.distributed._functional_collectives",
    ),
    (
        r"DTensor|got mixed torch\.Tensor|distributed operator",
        "the model computes on DTensors",
        "shard with plain modules that call collectives; DTensor parameters are fine where "
        "forward works on their local tensors",
    ),
    (
        r"Node\.meta (\w+) has invalid val field|c10d\.(\w+_\b|Work)|ProcessGroup",
        "a collective has no functional form",
        "use the same collective of torch.distributed._functional_collectives",
    ),
    (
        r"\.numpy\(\)|\.data_ptr|Cannot access data pointer",
        "the model leaves PyTorch",
        "keep forward within torch ops; wrap foreign code with torch.library.custom_op",
    ),
    (
        r"UnsupportedOperator|register_fake|no fake impl|does not support (running )?meta",
        "an op cannot be traced",
        "give it a fake implementation with torch.library.register_fake",
    ),
    (
        r"assigned during export|was mutated|modified during",
        "forward assigns to an attribute of the model",
        "register it as a buffer and update that in place",
    ),
)
"""Pattern of the exception's type and text -> what is wrong, remedy; the first match counts."""


def capture_error(error: Exception) -> CommPlanError:
    """The error for a user whose model torch.export refused with ``error``."""
    if isinstance(error, CommPlanError):
        return error
    text = f"{type(error).__name__}: {error}"
    what, remedy = next(
        ((what, remedy) for pattern, what, remedy in KNOWN if re.search(pattern, text)),
        (
            "the model cannot be exported",
            "make torch.export.export(model, args, strict=False) work on it",
        ),
    )
    found = next(line for line in text.splitlines() if line.strip())
    return CaptureError(what, where=model_line(error), found=found, remedy=remedy)


def model_line(error: BaseException) -> str:
    """``file.py:12 in forward: code`` of the innermost frame outside torch and this package."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = max((i for i, f in enumerate(frames) if f.filename.startswith(HERE)), default=-1)
    own = [f for f in frames[ours + 1 :] if Path(f.filename).is_file()]
    for frame in reversed(own):
        if not frame.filename.startswith(TORCH) and not _is_standard(frame.filename):
            code = f": {frame.line}" if frame.line else ""
            return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}{code}"
    return ""


def _is_standard(filename: str) -> bool:
    return filename.startswith(STANDARD_LIBRARY) and "site-packages" not in filename
