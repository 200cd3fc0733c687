"""Ops of others: what they are declared to do, read as ours and written back."""

from compiler.ir.dialects.check_op import check_op
from compiler.ir.dialects.read import read
from compiler.ir.dialects.registry import CollectiveOp, ComposedOp, Entry, called, register_ops
from compiler.ir.dialects.unknown import remedy, unknown_collectives
from compiler.ir.dialects.write import write
from compiler.ir.rules.opaque import OpaqueOp

__all__ = [
    "CollectiveOp",
    "ComposedOp",
    "Entry",
    "OpaqueOp",
    "called",
    "check_op",
    "read",
    "register_ops",
    "remedy",
    "unknown_collectives",
    "write",
]
