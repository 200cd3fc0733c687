"""What went wrong in export, said in terms of the model: the op, the line, the remedy."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

from torch import fx
from torch.distributed import distributed_c10d
from torch.export import ExportedProgram

from compiler.errors import CaptureError, CommPlanError
from compiler.ir.access import TORCH, inside, source_line

ON_DTENSORS = "the model computes on DTensors"
"""What torch.export cannot trace: only the recorder can."""

STANDARD_LIBRARY = inside(sysconfig.get_paths()["stdlib"])
HERE = inside(Path(__file__).parent)

INSTEAD = (
    "use all_reduce, all_gather_into_tensor, reduce_scatter_tensor or all_to_all_single, or keep "
    "it outside the model"
)
FORMS = {
    "broadcast": "broadcast",
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce_coalesced",
    "allgather": "all_gather_tensor",
    "_allgather_base": "all_gather_tensor",
    "reduce_scatter": "reduce_scatter_tensor",
    "_reduce_scatter_base": "reduce_scatter_tensor",
    "alltoall": "all_to_all_single",
    "alltoall_base": "all_to_all_single",
}
"""Collective of torch.distributed that export leaves as it is -> functional collective."""

OBJECTS_AND_HANDLES = frozenset({"isend", "irecv", "batch_isend_irecv"}) | {
    name for name in dir(distributed_c10d) if "object" in name and not name.startswith("_")
}
"""Functions of torch.distributed that export refuses where the model calls them."""

UNMAPPED = r"Node\.meta (\w+) has invalid val field|c10d\.(\w+_\b|Work)|ProcessGroup"

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
        ON_DTENSORS,
        'change what stopped the recorder, or use torch.compile(model, backend="commplan"), which '
        "sees models below DTensor too",
    ),
    (
        UNMAPPED,
        "a collective has no functional form",
        INSTEAD,
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
    (
        r"reduction dim|must match|same number of elements|invalid for input of size|not divisible",
        "the model cannot be exported",
        "see whether its sizes divide by the number of ranks, and whether the arguments have the "
        "shapes that forward takes",
    ),
)
"""Pattern of the exception's type and text -> what is wrong, remedy; the first match counts."""


def capture_error(error: Exception) -> CommPlanError:
    """Return the error for a user whose model torch.export refused with ``error``."""
    if isinstance(error, CommPlanError):
        return error
    text = f"{type(error).__name__}: {error}"
    if (unmapped := _unmapped(error, text)) is not None:
        return unmapped
    what, remedy = next(
        ((what, remedy) for pattern, what, remedy in KNOWN if re.search(pattern, text)),
        (
            "the model cannot be exported",
            "make torch.export.export(model, args, strict=False) work on it",
        ),
    )
    first_line = next(line for line in text.splitlines() if line.strip())
    return CaptureError(what, where=model_line(error), found=first_line, remedy=remedy)


def _unmapped(error: Exception, text: str) -> CaptureError | None:
    """Return the error for a collective that cannot be in a functional graph, if that is it.

    Export fails over it where the model calls it, or later, with a graph that has it.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_name in OBJECTS_AND_HANDLES and code.co_filename == distributed_c10d.__file__:
            return _without_form(code.co_name, model_line(error))
        for value in frame.f_locals.values() if re.search(UNMAPPED, text) else ():
            graph = value.graph if isinstance(value, fx.GraphModule | ExportedProgram) else value
            for node in graph.nodes if isinstance(graph, fx.Graph) else ():
                name = str(getattr(getattr(node.target, "_schema", None), "name", ""))
                if name.startswith("c10d::"):
                    return _without_form(name.removeprefix("c10d::"), source_line(node))
    return None


def _without_form(name: str, where: str) -> CaptureError:
    name = name.removesuffix("_")
    what, remedy = "a collective has no functional form", INSTEAD
    if (form := FORMS.get(name)) is not None:
        what = "a collective is not functional"
        remedy = f"use {form} of torch.distributed._functional_collectives"
    return CaptureError(what, where=where, found=name, remedy=remedy)


def model_line(error: BaseException) -> str:
    """Return ``file.py:12 in forward: code`` of the innermost frame of the model's code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = max((i for i, f in enumerate(frames) if f.filename.startswith(HERE)), default=-1)
    own = [f for f in frames[ours + 1 :] if Path(f.filename).is_file()]
    for frame in reversed(own):
        if not frame.filename.startswith(TORCH) and not _is_standard(frame.filename):
            code = f": {frame.line}" if frame.line else ""
            return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}{code}"
    return ""


def _is_standard(filename: str) -> bool:
    """Return whether a file is Python's own, or typing_extensions, which wraps functions."""
    is_standard = filename.startswith(STANDARD_LIBRARY) and "site-packages" not in filename
    return is_standard or Path(filename).name == "typing_extensions.py"
