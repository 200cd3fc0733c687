"""Ops that work element by element, and creation of constant tensors."""

from __future__ import annotations

from fractions import Fraction

import torch

from compiler.ir.rules.build import (
    Rule,
    coefficient,
    pointwise,
    pointwise_dims,
    scalar,
    table,
)
from compiler.ir.rules.meaning import BROADCAST, Call, Dims, Meaning, Term

WIDENS = {
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float64),
    (torch.float16, torch.float64),
    (torch.float32, torch.float64),
    (torch.int8, torch.int32),
    (torch.int8, torch.int64),
    (torch.int32, torch.int64),
}
"""Conversions that keep every value exactly."""


def cast(call: Call, operand: int = 0, terms: tuple[Term, ...] | None = None) -> Meaning:
    """The elements of ``operand`` in the result's type: the same values, unless it narrows."""
    before, after = call.dtypes[operand], call.result_dtypes[0]
    exact = before == after or (before, after) in WIDENS
    return Meaning(
        terms=(terms or (Term((operand,)),)) if exact else None,
        dims=pointwise_dims(call),
        pointwise=True,
        casts=before != after,
    )


def converted(call: Call) -> bool:
    """Whether the op mixes element types, so that an operand is cast on the way in."""
    return any(dtype != call.result_dtypes[0] for dtype in call.dtypes)


def combination(call: Call, parts: list[tuple[str, Fraction | None]]) -> Meaning:
    """Sum of ``factor * argument``; an argument that is a number is a constant term."""
    if converted(call) or any(factor is None for _, factor in parts):
        return pointwise(call)
    terms: list[Term] = []
    for name, factor in parts:
        assert factor is not None
        index, number = call.index(name), scalar(call.arguments.get(name))
        if index is not None:
            terms.append(Term((index,), coefficient=factor))
        elif number is None:
            return pointwise(call)
        elif number:
            terms.append(Term((), coefficient=factor * number))
    return Meaning(terms=tuple(terms), dims=pointwise_dims(call), pointwise=True)


def add(call: Call) -> Meaning:
    """Self + alpha * other."""
    return combination(call, [("self", Fraction(1)), ("other", coefficient(call, "alpha"))])


def sub(call: Call) -> Meaning:
    """Self - alpha * other."""
    alpha = coefficient(call, "alpha")
    return combination(call, [("self", Fraction(1)), ("other", None if alpha is None else -alpha)])


def rsub(call: Call) -> Meaning:
    """Other - alpha * self."""
    alpha = coefficient(call, "alpha")
    return combination(call, [("self", None if alpha is None else -alpha), ("other", Fraction(1))])


def neg(call: Call) -> Meaning:
    """-self."""
    return combination(call, [("self", Fraction(-1))])


def mul(call: Call) -> Meaning:
    """Self * other, or a number times self."""
    first, second = call.index("self"), call.index("other")
    if converted(call):
        return pointwise(call)
    if first is not None and second is not None:
        return Meaning(terms=(Term((first, second)),), dims=pointwise_dims(call), pointwise=True)
    return combination(call, [("self", scalar(call.arguments["other"]))])


def div(call: Call) -> Meaning:
    """Self / other: linear in self; not for integers or a rounding mode."""
    result = call.result_dtypes[0]
    if converted(call) or call.arguments.get("rounding_mode") or not _is_float(result):
        return pointwise(call)
    divisor = call.index("other")
    if divisor is not None:
        term = Term((call.operand("self"),), map=("divide",), fixed=(divisor,))
        return Meaning(terms=(term,), dims=pointwise_dims(call), pointwise=True)
    number = scalar(call.arguments["other"])
    return combination(call, [("self", 1 / number if number else None)])


def _is_float(found: torch.dtype | None) -> bool:
    return found is not None and found.is_floating_point


def where(call: Call) -> Meaning:
    """Condition ? self : other, linear in the two together."""
    condition = call.index("condition")
    if condition is None or call.index("self") is None or call.index("other") is None:
        return pointwise(call)
    if len({call.dtypes[call.operand(n)] for n in ("self", "other")}) > 1:
        return pointwise(call)
    terms = tuple(
        Term((call.operand(name),), map=("where", name), fixed=(condition,))
        for name in ("self", "other")
    )
    return Meaning(terms=terms, dims=pointwise_dims(call), pointwise=True)


def masked_fill(call: Call) -> Meaning:
    """Self where the mask is false, linear if the value put elsewhere is zero."""
    if scalar(call.arguments.get("value")) != 0:
        return pointwise(call)
    term = Term((call.operand("self"),), map=("where", "other"), fixed=(call.operand("mask"),))
    return Meaning(terms=(term,), dims=pointwise_dims(call), pointwise=True)


def filled(argument: str | Fraction) -> Rule:
    """A tensor of one constant, the argument of that name or the number given."""

    def rule(call: Call) -> Meaning:
        number = argument if isinstance(argument, Fraction) else scalar(call.arguments[argument])
        if number is None:
            return Meaning()
        dims = Dims(tuple((None,) * len(s) for s in call.shapes), ((None,) * len(call.result),))
        return Meaning(terms=(Term((), coefficient=number),) if number else (), dims=dims)

    return rule


def copied(call: Call) -> Meaning:
    """copy(self, src): the elements of src in the type and shape of self."""
    source = call.operand("src")
    exact = cast(call, operand=source)
    if call.dtypes[source] != call.result_dtypes[0]:
        return exact
    return Meaning(terms=(Term((source,), map=BROADCAST),), dims=exact.dims, pointwise=True)


def random(_: Call) -> Meaning:
    """A fresh value on every call and rank."""
    return Meaning(random=True)


def source(call: Call) -> Meaning:
    """Determined by static arguments alone (arange, eye)."""
    dims = Dims(tuple((None,) * len(s) for s in call.shapes), ((None,) * len(call.result),))
    return Meaning(dims=dims)


NONLINEAR = (
    "abs", "acos", "asin", "atan", "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor",
    "ceil", "celu", "clamp", "clamp_max", "clamp_min", "cos", "elu", "eq", "erf", "exp", "exp2",
    "expm1", "floor", "floor_divide", "fmod", "ge", "gelu", "gt", "hardsigmoid", "hardswish",
    "hardtanh", "isfinite", "isinf", "isnan", "le", "leaky_relu", "log", "log1p", "log2",
    "logical_and", "logical_not", "logical_or", "logical_xor", "lt", "maximum", "minimum", "mish",
    "nan_to_num", "ne", "pow", "reciprocal", "relu", "relu6", "remainder", "round", "rsqrt", "sgn",
    "sigmoid", "sign", "silu", "sin", "softplus", "sqrt", "square", "tan", "tanh", "trunc",
    "log_sigmoid", "selu", "threshold", "heaviside", "bitwise_left_shift", "bitwise_right_shift",
)  # fmt: skip

TABLE: dict[Rule, tuple[str, ...]] = {
    pointwise: NONLINEAR,
    add: ("add",),
    sub: ("sub", "subtract"),
    rsub: ("rsub",),
    neg: ("neg",),
    mul: ("mul", "multiply"),
    div: ("div", "divide", "true_divide"),
    where: ("where",),
    masked_fill: ("masked_fill",),
    cast: (
        "_to_copy", "alias", "clone", "contiguous", "detach", "lift_fresh", "lift_fresh_copy",
        "to", "type_as", "positive", "_assert_tensor_metadata",
    ),
    copied: ("copy",),
    filled("fill_value"): ("full", "full_like", "new_full"),
    filled("value"): ("fill",),
    filled(Fraction(0)): ("zeros", "zeros_like", "new_zeros"),
    filled(Fraction(1)): ("ones", "ones_like", "new_ones"),
    filled("s"): ("scalar_tensor",),
    source: ("arange", "eye", "linspace"),
    random: (
        "rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "randperm",
        "bernoulli", "multinomial", "normal", "native_dropout", "dropout", "empty", "empty_like",
        "new_empty", "empty_strided", "new_empty_strided", "empty_permuted",
    ),
}  # fmt: skip

RULES = table(TABLE)
