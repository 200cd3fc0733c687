"""Ops of others: what they are declared to do, read as ours and written back."""

from compiler.ir.dialects.read import read
from compiler.ir.dialects.registry import CollectiveOp, ComposedOp, Entry, called, register_ops
from compiler.ir.dialects.unknown import remedy, unknown_collectives
from compiler.ir.rules.opaque import OpaqueOp

__all__ = [
    "CollectiveOp",
    "ComposedOp",
    "Entry",
    "OpaqueOp",
    "called",
    "read",
    "register_ops",
    "remedy",
    "unknown_collectives",
]
