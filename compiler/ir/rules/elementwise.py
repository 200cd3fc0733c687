"""Ops that work element by element, and creation of constant tensors."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import torch

from compiler.ir.rules.builders import (
    Rule,
    coefficient,
    combining,
    converted,
    moving,
    pointwise,
    pointwise_dims,
    scalar,
    table,
    unlabelled,
    whole_but,
)
from compiler.ir.rules.meaning import Call, Dims, Meaning, Term


@lru_cache
def widens(before: torch.dtype | None, after: torch.dtype | None) -> bool:
    """Whether a conversion keeps every value exactly: same kind of number, and no bit is lost.

    Conversions among single bytes of floating point, and of packed types, count as losing some.
    """
    few, many = _limits(before), _limits(after)
    if before is None or after is None or few is None or many is None:
        return False
    if before.is_floating_point != after.is_floating_point:
        return False
    grows = after.itemsize > before.itemsize or not after.is_floating_point
    return grows and all(a >= b for a, b in zip(many, few, strict=True))


def _limits(dtype: torch.dtype | None) -> tuple[float, ...] | None:
    """Range and, of floating point, precision and least number: the greater, the more values."""
    try:
        if dtype is None or dtype.is_complex or dtype is torch.bool:
            return None
        if not dtype.is_floating_point:
            return torch.iinfo(dtype).max, -torch.iinfo(dtype).min
        info = torch.finfo(dtype)
        return info.max, 1 / info.eps, 1 / (info.smallest_normal * info.eps)
    except (TypeError, NotImplementedError):  # packed: an element is several numbers
        return None


def cast(call: Call, operand: int = 0) -> Meaning:
    """The elements of ``operand`` in the result's type: the same values, unless it narrows."""
    before, after = call.dtypes[operand], call.result_dtypes[0]
    exact = before == after or widens(before, after)
    return Meaning(
        terms=(Term((operand,)),) if exact else None,
        dims=pointwise_dims(call),
        pointwise=True,
        casts=before != after,
    )


def cast_like(call: Call) -> Meaning:
    """Self in the element type of another tensor, whose values and sizes do not matter."""
    alone = cast(replace(call, shapes=call.shapes[:1]))
    assert alone.dims is not None
    dims = Dims((*alone.dims.operands, *unlabelled(call)[1:]), alone.dims.results)
    return replace(alone, dims=dims)


def copied(call: Call) -> Meaning:
    """copy(self, src): the elements of src in the type and shape of self."""
    return cast(call, call.operand("src"))


def combination(call: Call, parts: list[tuple[str, Fraction | None]]) -> Meaning:
    """Sum of ``factor * argument``; an argument that is a number is a constant term.

    Not for booleans, whose sum is a disjunction.
    """
    if converted(call) or torch.bool in call.result_dtypes:
        return pointwise(call)
    terms: list[Term] = []
    for name, factor in parts:
        index, number = call.index(name), scalar(call.arguments.get(name))
        if factor is None or (index is None and number is None):
            return pointwise(call)
        if index is not None:
            terms.append(Term((index,), coefficient=factor))
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


def lerp(call: Call) -> Meaning:
    """Self + weight * (end - self) for a number as weight."""
    weight = scalar(call.arguments["weight"])
    rest = None if weight is None else 1 - weight
    return combination(call, [("self", rest), ("end", weight)])


def neg(call: Call) -> Meaning:
    """-self."""
    return combination(call, [("self", Fraction(-1))])


def mul(call: Call) -> Meaning:
    """Self * other, or a number times self."""
    first, second = call.operand("self"), call.index("other")
    if second is None:
        return combination(call, [("self", scalar(call.arguments["other"]))])
    terms = None if converted(call) else (Term((first, second)),)
    return Meaning(terms=terms, dims=pointwise_dims(call), pointwise=True)


def addcmul(call: Call) -> Meaning:
    """Self + value * tensor1 * tensor2."""
    value = coefficient(call, "value")
    if converted(call) or value is None:
        return pointwise(call)
    factors = (call.operand("tensor1"), call.operand("tensor2"))
    terms = (Term((call.operand("self"),)), Term(factors, coefficient=value))
    return Meaning(terms=terms, dims=pointwise_dims(call), pointwise=True)


def div(call: Call) -> Meaning:
    """Self / other: linear in self; not for integers or a rounding mode."""
    result = call.result_dtypes[0]
    exact = result is not None and (result.is_floating_point or result.is_complex)
    if converted(call) or call.arguments.get("rounding_mode") or not exact:
        return pointwise(call)
    divisor = call.index("other")
    if divisor is not None:
        term = Term((call.operand("self"),), map=("divide",), fixed=(divisor,))
        return Meaning(terms=(term,), dims=pointwise_dims(call), pointwise=True)
    number = scalar(call.arguments["other"])
    return combination(call, [("self", 1 / number if number else None)])


def chosen(condition: str, taken: str, otherwise: str) -> Rule:
    """Condition ? taken : otherwise, linear in the two together; a number must be zero."""

    def rule(call: Call) -> Meaning:
        terms: list[Term] = []
        for name, role in ((taken, "taken"), (otherwise, "otherwise")):
            index = call.index(name)
            if index is not None and not converted(call, (index,)):
                condition_operand = (call.operand(condition),)
                terms.append(Term((index,), map=("choose", role), fixed=condition_operand))
            elif scalar(call.arguments[name]) != 0:
                return pointwise(call)
        return Meaning(terms=tuple(terms), dims=pointwise_dims(call), pointwise=True)

    return rule


def filled(argument: str | int, *, like: bool = False) -> Rule:
    """A tensor of one constant, the argument of that name or the number given.

    Args:
        argument: name or number.
        like: the result has the shape of the operand, so that their dimensions correspond.
    """

    def rule(call: Call) -> Meaning:
        number = scalar(call.arguments[argument] if isinstance(argument, str) else argument)
        dims = pointwise_dims(call) if like else source(call).dims
        dtype = call.result_dtypes[0]
        if number is None or dtype is None:
            return Meaning(dims=dims)
        if dtype is torch.bool:
            number = Fraction(number != 0)
        elif not (dtype.is_floating_point or dtype.is_complex):
            number = Fraction(int(number))
        return Meaning(terms=(Term((), coefficient=number),) if number else (), dims=dims)

    return rule


def filled_from(call: Call) -> Meaning:
    """fill(self, value) with a tensor of no dimensions as value."""
    return cast(call, call.operand("value"))


def source(call: Call) -> Meaning:
    """Determined by static arguments alone (arange, eye)."""
    return Meaning(dims=Dims(unlabelled(call), ((None,) * len(call.result),)))


def random(_: Call) -> Meaning:
    """A fresh function of the operands on every call and rank."""
    return Meaning(random=True)


def fresh(_: Call) -> Meaning:
    """A fresh value on every call and rank; of operands, shapes and types alone count."""
    return Meaning(random=True, fresh=True)


def dropout(call: Call) -> Meaning:
    """The operand itself where nothing is dropped."""
    drops = call.arguments["train"] and call.arguments["p"] != 0
    return random(call) if drops else cast(call)


def native_dropout(call: Call) -> Meaning:
    """The values and the mask; without training the mask is all true, hence not linear."""
    kept = call.arguments["train"] is False
    return Meaning(dims=whole_but(call, ())) if kept else random(call)


NONLINEAR = (
    "__and__", "__or__", "__xor__",
    "abs", "acos", "acosh", "addcdiv", "asin", "asinh", "atan", "atan2", "atanh", "bitwise_and",
    "bitwise_left_shift", "bitwise_not", "bitwise_or", "bitwise_right_shift", "bitwise_xor",
    "ceil", "celu", "clamp", "clamp_max", "clamp_min", "copysign", "cos", "cosh", "elu", "eq",
    "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "floor", "floor_divide", "fmax", "fmin",
    "fmod", "frac", "ge", "gelu", "gt", "hardsigmoid", "hardswish", "hardtanh", "heaviside",
    "isfinite", "isinf", "isnan", "le", "leaky_relu", "lerp.Tensor", "log", "log10", "log1p",
    "log2", "log_sigmoid", "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor",
    "logit", "lt", "mish", "nan_to_num", "ne", "polar", "pow", "reciprocal", "relu", "relu6",
    "remainder", "round", "rsqrt", "selu", "sgn", "sigmoid", "sign", "silu", "sin", "sinh",
    "softplus", "sqrt", "square", "tan", "tanh", "threshold", "trunc",
)  # fmt: skip

EXTREMA = {"max": ("maximum", "max.other"), "min": ("minimum", "min.other")}
"""Which reduction the ops are that of two elements."""

TABLE: dict[Rule, tuple[str, ...]] = {
    pointwise: NONLINEAR,
    add: ("add",),
    sub: ("sub", "subtract"),
    rsub: ("rsub",),
    lerp: ("lerp.Scalar",),
    neg: ("neg",),
    **{combining(pointwise, kind): names for kind, names in EXTREMA.items()},
    combining(mul, "product"): ("mul", "multiply"),
    addcmul: ("addcmul",),
    div: ("div", "divide", "true_divide"),
    chosen("condition", "self", "other"): (
        "where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar",
    ),
    chosen("mask", "value", "self"): ("masked_fill",),
    moving(cast): (
        "_to_copy", "alias", "clone", "contiguous", "detach", "lift_fresh", "lift_fresh_copy",
        "to.device", "to.dtype", "to.dtype_layout", "positive",
    ),
    moving(cast_like): ("to.other", "type_as"),
    moving(copied): ("copy.default",),
    filled("fill_value"): ("full.default", "new_full"),
    filled("fill_value", like=True): ("full_like",),
    filled("value", like=True): ("fill.Scalar",),
    filled_from: ("fill.Tensor",),
    filled(0): ("zeros.default", "new_zeros"),
    filled(0, like=True): ("zeros_like",),
    filled(1): ("ones.default", "new_ones"),
    filled(1, like=True): ("ones_like",),
    filled("s"): ("scalar_tensor",),
    source: ("arange", "eye", "linspace.default"),
    dropout: ("dropout",),
    native_dropout: ("native_dropout",),
    random: ("bernoulli", "multinomial", "normal", "uniform", "exponential"),
    fresh: (
        "rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "randperm",
        "empty.memory_format", "empty_like", "new_empty", "empty_strided", "new_empty_strided",
        "empty_permuted",
    ),
}  # fmt: skip

RULES = table(TABLE)
if hasattr(torch.ops.prims, "convert_element_type"):  # what Inductor writes for a conversion
    RULES[torch.ops.prims.convert_element_type.default] = cast
if hasattr(torch.ops.prims, "iota"):  # and for a range of numbers
    RULES[torch.ops.prims.iota.default] = source
