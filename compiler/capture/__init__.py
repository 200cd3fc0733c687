"""Capture: a model as its authors wrote it -> one SPMD graph that is the same on all ranks."""

from __future__ import annotations

from compiler.capture.arguments import CallForm
from compiler.capture.capture import Capture, capture
from compiler.capture.lift import Fixed
from compiler.capture.sampled import capture_ranks

__all__ = ["CallForm", "Capture", "Fixed", "capture", "capture_ranks"]
