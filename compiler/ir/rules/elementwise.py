"""Ops that work element by element, and creation of constant tensors."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache, partial

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
    """Return whether a conversion keeps every value: same kind of number, and no bit is lost.

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


def cast(call: Call, source: str = "") -> Meaning:
    """The elements of ``source`` in the result's type: the same values, unless it narrows."""
    operand = call.operand(source) if source else 0
    before, after = call.dtypes[operand], call.result_dtypes[0]
    exact = before == after or widens(before, after)
    terms = (Term((operand,)),) if exact else None
    return replace(pointwise(call, terms), casts=before != after)


def cast_like(call: Call) -> Meaning:
    """Self in the element type of another tensor, whose values and sizes do not matter."""
    alone = cast(replace(call, shapes=call.shapes[:1]))
    return replace(alone, dims=whole_but(call, ()))


def reinterpreted(call: Call) -> Meaning:
    """The bytes of self as another type: self itself where it is the same type."""
    return cast(call) if call.dtypes[0] == call.result_dtypes[0] else Meaning()


def combination(call: Call, **factors: Fraction | int | None) -> Meaning:
    """Sum of ``factor * argument``; an argument that is a number is a constant term.

    Uninterpreted where a factor is None, and for booleans, whose sum is a disjunction.
    """
    if converted(call) or torch.bool in call.result_dtypes:
        return pointwise(call)
    terms: list[Term] = []
    for name, factor in factors.items():
        index, number = call.index(name), scalar(call.arguments.get(name))
        if factor is None or (index is None and number is None):
            return pointwise(call)
        if index is not None:
            terms.append(Term((index,), coefficient=Fraction(factor)))
        elif number:
            terms.append(Term((), coefficient=factor * number))
    return pointwise(call, terms)


def added(call: Call, scaled: str, **signs: int) -> Meaning:
    """Sum of ``sign * argument``, the argument ``scaled`` times alpha."""
    alpha = coefficient(call, "alpha")
    if alpha is None:
        return pointwise(call)
    return combination(call, **{n: x * alpha if n == scaled else x for n, x in signs.items()})


def lerp(call: Call) -> Meaning:
    """Self + weight * (end - self) for a number as weight."""
    weight = scalar(call.arguments["weight"])
    return combination(call, self=None if weight is None else 1 - weight, end=weight)


def mul(call: Call) -> Meaning:
    """Self * other, or a number times self."""
    first, second = call.operand("self"), call.index("other")
    if second is None:
        return combination(call, self=scalar(call.arguments["other"]))
    return pointwise(call, None if converted(call) else (Term((first, second)),))


def addcmul(call: Call) -> Meaning:
    """Self + value * tensor1 * tensor2."""
    value = coefficient(call, "value")
    if converted(call) or value is None:
        return pointwise(call)
    factors = (call.operand("tensor1"), call.operand("tensor2"))
    return pointwise(call, (Term((call.operand("self"),)), Term(factors, coefficient=value)))


def div(call: Call) -> Meaning:
    """Self / other: linear in self; not for integers or a rounding mode."""
    result = call.result_dtypes[0]
    exact = result is not None and (result.is_floating_point or result.is_complex)
    if converted(call) or call.arguments.get("rounding_mode") or not exact:
        return pointwise(call)
    divisor = call.index("other")
    if divisor is not None:
        term = Term((call.operand("self"),), map=("divide",), fixed=(divisor,))
        return pointwise(call, (term,))
    number = scalar(call.arguments["other"])
    return combination(call, self=1 / number if number else None)


def chosen(call: Call, condition: str, taken: str, otherwise: str) -> Meaning:
    """Condition ? taken : otherwise, linear in the two together; a number must be zero."""
    terms: list[Term] = []
    for name, role in ((taken, "taken"), (otherwise, "otherwise")):
        index = call.index(name)
        if index is not None and not converted(call, (index,)):
            fixed = (call.operand(condition),)
            terms.append(Term((index,), map=("choose", role), fixed=fixed))
        elif scalar(call.arguments[name]) != 0:
            return pointwise(call)
    return pointwise(call, terms)


def filled(call: Call, value: str | int, *, like: bool = False) -> Meaning:
    """A tensor of one constant: ``value``, or the argument of that name.

    Where ``like`` is true, the result has the shape of the operand: their dimensions correspond.
    """
    number = scalar(call.arguments[value] if isinstance(value, str) else value)
    dims = pointwise_dims(call) if like else source(call).dims
    dtype = call.result_dtypes[0]
    if number is None or dtype is None:
        return Meaning(dims=dims)
    if dtype is torch.bool:
        number = Fraction(number != 0)
    elif not (dtype.is_floating_point or dtype.is_complex):
        number = Fraction(int(number))
    return Meaning(terms=(Term((), coefficient=number),) if number else (), dims=dims)


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
    partial(added, scaled="other", self=1, other=1): ("add",),
    partial(added, scaled="other", self=1, other=-1): ("sub", "subtract"),
    partial(added, scaled="self", self=-1, other=1): ("rsub",),
    partial(combination, self=-1): ("neg",),
    lerp: ("lerp.Scalar",),
    **{combining(pointwise, kind): names for kind, names in EXTREMA.items()},
    combining(mul, "product"): ("mul", "multiply"),
    addcmul: ("addcmul",),
    div: ("div", "divide", "true_divide"),
    partial(chosen, condition="condition", taken="self", otherwise="other"): (
        "where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar",
    ),
    partial(chosen, condition="mask", taken="value", otherwise="self"): ("masked_fill",),
    moving(cast): (
        "_to_copy", "alias", "clone", "contiguous", "detach", "lift_fresh", "lift_fresh_copy",
        "to.device", "to.dtype", "to.dtype_layout", "positive",
    ),
    moving(cast_like): ("to.other", "type_as"),
    moving(reinterpreted): ("view.dtype",),
    moving(partial(cast, source="src")): ("copy.default",),
    partial(filled, value="fill_value"): ("full.default", "new_full"),
    partial(filled, value="fill_value", like=True): ("full_like",),
    partial(filled, value="value", like=True): ("fill.Scalar",),
    partial(cast, source="value"): ("fill.Tensor",),
    partial(filled, value=0): ("zeros.default", "new_zeros"),
    partial(filled, value=0, like=True): ("zeros_like",),
    partial(filled, value=1): ("ones.default", "new_ones"),
    partial(filled, value=1, like=True): ("ones_like",),
    partial(filled, value="s"): ("scalar_tensor",),
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
for _name, _rule in (("convert_element_type", cast), ("iota", source)):  # what Inductor writes
    if hasattr(torch.ops.prims, _name):
        RULES[getattr(torch.ops.prims, _name).default] = _rule
