"""Mistakes that shipped in serving engines, as graphs."""

from __future__ import annotations

import pytest

from compiler.check import Verdict
from tests.compiler.check.verdicts import SEPARATE, XY, X, reduce, verdict
from tests.support.graphs import function

XYR = '%0 "x": f64[4] {tp: V}, %1 "y": f64[4] {tp: V}, %2 "r": f64[4]'
ONCE = function(X, f"%1: {reduce('%0')}", "return %1")

MISTAKES = {
    "reduced twice": (
        ONCE,
        function(X, f"%1: {reduce('%0')}", f"%2: {reduce('%1')}", "return %2"),
    ),
    "not reduced": (ONCE, function(X, "return %0")),
    "part of the sum reduced twice": (
        SEPARATE,
        function(XY, f"%2: {reduce('%0')}", "%3: f64[4] = aten.add.Tensor(%2, %1)",
                 f"%4: {reduce('%3')}", "return %4"),
    ),
    "replicated term counted once per rank": (
        function(XYR, f"%3: {reduce('%0')}", "%4: f64[4] = aten.add.Tensor(%3, %2)", "return %4"),
        function(XYR, "%3: f64[4] = aten.add.Tensor(%0, %2)", f"%4: {reduce('%3')}", "return %4"),
    ),
    "bias counted once per rank": (
        function(X, f"%1: {reduce('%0')}", "%2: f64[4] = aten.add.Tensor(%1, 1)", "return %2"),
        function(X, "%1: f64[4] = aten.add.Tensor(%0, 1)", f"%2: {reduce('%1')}", "return %2"),
    ),
    "nonlinear op on a partial sum": (
        function(X, f"%1: {reduce('%0')}", "%2: f64[4] = aten.silu(%1)", "return %2"),
        function(X, "%1: f64[4] = aten.silu(%0)", f"%2: {reduce('%1')}", "return %2"),
    ),
    "partial sums multiplied": (
        function(XY, f"%2: {reduce('%0')}", f"%3: {reduce('%1')}",
                 "%4: f64[4] = aten.mul.Tensor(%2, %3)", "return %4"),
        function(XY, "%2: f64[4] = aten.mul.Tensor(%0, %1)", f"%3: {reduce('%2')}", "return %3"),
    ),
    "wrong reduction": (
        SEPARATE,
        function(XY, "%2: f64[4] = aten.add.Tensor(%0, %1)", f"%3: {reduce('%2', op='avg')}",
                 "return %3"),
    ),
    "stale residual": (
        function(XYR, f"%3: {reduce('%0')}", "%4: f64[4] = aten.add.Tensor(%3, %2)",
                 f"%5: {reduce('%1')}", "%6: f64[4] = aten.add.Tensor(%5, %4)", "return %6"),
        function(XYR, f"%3: {reduce('%0')}", "%4: f64[4] = aten.add.Tensor(%3, %2)",
                 f"%5: {reduce('%1')}", "%6: f64[4] = aten.add.Tensor(%5, %2)", "return %6"),
    ),
    "branch left out": (SEPARATE, function(XY, f"%2: {reduce('%0')}", "return %2")),
    "gather of scattered rows left out": (
        function('%0 "x": f64[4, 2] {tp: V}',
                 "%1: f64[4, 2] = comm.all_reduce(%0) {axis = tp, op = sum}", "return %1"),
        function('%0 "x": f64[4, 2] {tp: V}',
                 "%1: f64[1, 2] = comm.reduce_scatter(%0) {axis = tp, op = sum}",
                 "%2: f64[4, 2] = aten.repeat(%1, [4, 1])", "return %2"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_that_shipped_elsewhere_are_refuted(name: str) -> None:
    source, target = MISTAKES[name]
    assert verdict(source, target) is Verdict.NOT_EQUIVALENT
