"""Capture: a model as its authors wrote it -> one SPMD graph that is the same on all ranks."""

from __future__ import annotations

from compiler.capture.call_form import CallForm
from compiler.capture.capture import Capture, capture
from compiler.capture.fake_ranks import capture_ranks
from compiler.capture.trace import Fixed

__all__ = ["CallForm", "Capture", "Fixed", "capture", "capture_ranks"]
