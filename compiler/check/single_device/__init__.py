"""Verdicts: whether a tensor-parallel model computes what the model on one device computes."""

from compiler.check.single_device.compare import check_single_device
from compiler.check.single_device.layouts import Declared, Packed

__all__ = ["Declared", "Packed", "check_single_device"]
