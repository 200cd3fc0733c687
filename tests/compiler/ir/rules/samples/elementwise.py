"""Calls of ops that work element by element, of constants, and of random ops."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from compiler.ir.rules.builders import overloads
from compiler.ir.rules.elementwise import EXTREMA, NONLINEAR
from tests.compiler.ir.rules.laws import Sample, counts, masks, reals, rough, sample

aten = torch.ops.aten
MASKS = "partial sums of booleans are nothing"
CONVERTED = "an operand is converted on the way in"

Source = Callable[..., torch.Tensor]


def fractions(*shape: int) -> torch.Tensor:
    """Between zero and one."""
    return reals(*shape).abs() / 2.5


def above_one(*shape: int) -> torch.Tensor:
    return reals(*shape).abs() + 1


def positive(*shape: int) -> torch.Tensor:
    return reals(*shape).abs()


DOMAINS: dict[str, Source] = {
    **dict.fromkeys(("acos", "asin", "atanh", "erfinv", "logit"), fractions),
    **dict.fromkeys(("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "pow"), positive),
    "acosh": above_one,
    "logical_xor": lambda *s: reals(*s) * masks(*s),
    **dict.fromkeys(
        ("bitwise_left_shift", "bitwise_right_shift"), lambda *s: counts(*s, below=2) + 1
    ),
    **dict.fromkeys(
        ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "__and__", "__or__", "__xor__"),
        lambda *s: counts(*s, below=16) + 1,
    ),
}
"""What is not drawn from all reals."""

REFUSED = {
    "addcdiv": "linear in two of its three operands: nobody asked",
    "lerp": "linear in two of its three operands: nobody asked",
    "polar": "linear in the lengths: nobody asked",
    **dict.fromkeys(
        ("bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar"),
        "a product with a power of two: nobody asked",
    ),
    **dict.fromkeys(("isinf", "isnan", "nan_to_num"), "all numbers here are finite"),
}
"""Why an op is uninterpreted that on these samples adds up."""

NUMBERS = {"threshold": (0.5, 0.25), "clamp": (-0.75, 0.75), "round.decimals": (), "logit": (),
           "bitwise_right_shift": (1,), "clamp_max": (0.25,), "clamp_min": (0.25,)}  # fmt: skip


def nonlinear() -> Iterator[Sample]:
    """A call of every uninterpreted op: tensors of sizes that broadcast, numbers where asked."""
    for op in overloads(*NONLINEAR, *(n for names in EXTREMA.values() for n in names)):
        base, _, overload = str(op).removeprefix("aten.").partition(".")
        draw, shapes, args = DOMAINS.get(base, reals), iter(((6, 4), (6, 1), (4,))), []
        whole = draw in (DOMAINS["bitwise_and"], DOMAINS["bitwise_left_shift"])
        numbers = iter(NUMBERS.get(f"{base}.{overload}", NUMBERS.get(base, (3 if whole else 1.5,))))
        for argument in op._schema.arguments:
            kind = str(argument.type)
            if "Tensor" in kind:
                args.append(draw(*next(shapes)))
            elif (
                not argument.kwarg_only
                and (not argument.has_default_value() or base in NUMBERS)
                and (number := next(numbers, None)) is not None
            ):
                args.append(number)
        kwargs = {"decimals": 1} if overload == "decimals" else {}
        if overload == "decimals":
            args = [rough(6, 4)]
        yield sample(
            op, *args, refuses=REFUSED.get(f"{base}.{overload}", REFUSED.get(base, "")), **kwargs
        )


def linear() -> Iterator[Sample]:
    """Sums, products and choices."""
    for op in (aten.add.Tensor, aten.sub.Tensor, aten.subtract.Tensor, aten.rsub.Tensor):
        yield sample(op, reals(6, 4), reals(6, 4))
        yield sample(op, reals(6, 1), reals(3, 1, 4), alpha=2.5)
        yield sample(op, counts(6, 4), reals(6, 4), refuses=CONVERTED)
        if op is not aten.rsub.Tensor:
            yield sample(op, reals(6, 4), 1.5)
    for op in (aten.add.Scalar, aten.sub.Scalar, aten.subtract.Scalar, aten.rsub.Scalar):
        yield sample(op, reals(6, 4), 2, 3)
        yield sample(op, counts(6, 4), 1.5)
    yield sample(aten.add.Tensor, masks(6, 4) | True, masks(6, 4))
    yield sample(aten.add.Tensor, reals(6, 4), 0)
    for op in (aten.mul.Tensor, aten.multiply.Tensor):
        yield sample(op, reals(6, 4), reals(6, 1))
        yield sample(op, reals(6, 4), -2)
        yield sample(op, reals(6, 4), reals(6, 4).float(), refuses=CONVERTED)
    for op in (aten.mul.Scalar, aten.multiply.Scalar):
        yield sample(op, reals(6, 4), 1.5)
        yield sample(op, counts(6, 4) + 1, 2.5, refuses=CONVERTED)
    for op in (aten.div.Tensor, aten.divide.Tensor, aten.true_divide.Tensor):
        yield sample(op, reals(6, 1), reals(6, 4))
        yield sample(op, reals(6, 4), 4)
        yield sample(op, counts(6, 4) + 1, counts(6, 4) + 1, refuses=CONVERTED)
    for op in (aten.div.Scalar, aten.divide.Scalar, aten.true_divide.Scalar):
        yield sample(op, reals(6, 4), 0.5)
        yield sample(op, reals(6, 4), 0.0)
    for op in (aten.div.Tensor_mode, aten.divide.Tensor_mode):
        yield sample(op, reals(6, 4), reals(6, 4), rounding_mode=None)
        yield sample(op, reals(6, 4), reals(6, 4), rounding_mode="floor")
    for op in (aten.div.Scalar_mode, aten.divide.Scalar_mode):
        yield sample(op, reals(6, 4), 0.5, rounding_mode=None)
        yield sample(op, reals(6, 4), 0.75, rounding_mode="trunc")
    yield sample(aten.neg.default, reals(6, 4))
    yield sample(aten.lerp.Scalar, reals(6, 4), reals(6, 4), 0.25)
    yield sample(aten.addcmul.default, reals(6, 4), reals(6, 1), reals(4), value=-2)
    yield sample(aten.where.self, masks(6, 4), reals(6, 1), reals(4))
    yield sample(aten.where.self, masks(6, 4), reals(6, 4).float(), reals(6, 4), refuses=CONVERTED)
    yield sample(aten.where.ScalarOther, masks(6, 4), reals(6, 4), 0, refuses=MASKS)
    yield sample(aten.where.ScalarOther, masks(6, 4), reals(6, 4), -1.0)
    yield sample(aten.where.ScalarSelf, masks(6, 4), 0.0, reals(6, 4))
    yield sample(aten.where.ScalarSelf, masks(6, 4), 2.0, reals(6, 4))
    yield sample(aten.where.Scalar, masks(6, 4), 2.0, 3.0)
    yield sample(aten.masked_fill.Scalar, reals(6, 4), masks(6, 1), 0)
    yield sample(aten.masked_fill.Scalar, reals(6, 4), masks(6, 4), 2)
    yield sample(aten.masked_fill.Scalar, reals(6, 4), masks(6, 4), float("-inf"),
                 refuses="infinity is no number")  # fmt: skip
    yield sample(aten.masked_fill.Tensor, reals(6, 4), masks(6, 1), reals())


def copies() -> Iterator[Sample]:
    """Conversions and copies."""
    for op in (aten.alias, aten.clone, aten.contiguous, aten.detach, aten.lift_fresh,
               aten.lift_fresh_copy, aten.positive, aten._to_copy):  # fmt: skip
        yield sample(op.default, reals(6, 4))
    yield sample(aten._to_copy.default, rough(6, 4), dtype=torch.bfloat16)
    yield sample(aten._to_copy.default, rough(6, 4), dtype=torch.float8_e4m3fn)
    yield sample(aten._to_copy.default, reals(6, 4).bfloat16(), dtype=torch.float32)
    yield sample(aten._to_copy.default, reals(6, 4).to(torch.float8_e5m2), dtype=torch.bfloat16)
    yield sample(aten._to_copy.default, masks(6, 4), dtype=torch.int64,
                 refuses=MASKS)  # fmt: skip
    yield sample(aten._to_copy.default, reals(6, 4), dtype=torch.int64)
    yield sample(aten.view.dtype, reals(6, 4), torch.float64)
    yield sample(aten.view.dtype, reals(6, 4), torch.int64)
    yield sample(aten.to.dtype, rough(6, 4), torch.float16)
    yield sample(aten.to.dtype, reals(6, 4).float(), torch.float64)
    yield sample(aten.to.dtype_layout, rough(6, 4), dtype=torch.float16)
    yield sample(aten.to.device, rough(6, 4), torch.device("cpu"), torch.float64)
    yield sample(aten.to.other, rough(6, 4), reals(3, 2, 1).half(), holds=UNREAD)
    yield sample(aten.to.other, reals(6, 4), reals(3, 2, 1), holds=UNREAD)
    yield sample(aten.type_as.default, reals(6, 4), reals(2), holds=UNREAD)
    yield sample(aten.copy.default, reals(6, 4), reals(6, 1))
    yield sample(aten.copy.default, reals(6, 4).half(), rough(4))
    yield sample(aten.fill.Tensor, reals(6, 4), reals())
    yield sample(torch.ops.prims.convert_element_type.default, rough(6, 4), torch.float16)
    yield sample(aten.dropout.default, reals(6, 4), 0.5, False)
    yield sample(aten.dropout.default, reals(6, 4), 0.0, True)
    yield sample(aten.native_dropout.default, reals(6, 4), 0.5, False)


UNREAD = "only the element type of the other tensor is read"


def constants() -> Iterator[Sample]:
    """Tensors that no operand's values decide."""
    nothing = "the operand's values are not read, and the result is zero"
    sizes = "the operand's sizes are not read"
    yield sample(aten.full.default, [6, 4], 1.5)
    yield sample(aten.full.default, [6, 4], 2.5, dtype=torch.int64)
    yield sample(aten.full.default, [6, 4], 2.5, dtype=torch.bool)
    yield sample(aten.full.default, [6, 4], True)
    yield sample(aten.full_like.default, reals(6, 4), 1.5)
    yield sample(aten.full_like.default, reals(6, 4), float("inf"),
                 refuses="infinity is no number")  # fmt: skip
    yield sample(aten.new_full.default, reals(6, 4), [2, 3], 1.5, holds=sizes)
    yield sample(aten.fill.Scalar, counts(6, 4), 1.5)
    yield sample(aten.zeros.default, [6, 4])
    yield sample(aten.ones.default, [6, 4])
    yield sample(aten.zeros_like.default, reals(6, 4), refuses=nothing)
    yield sample(aten.new_zeros.default, reals(6, 4), [2, 3], refuses=nothing, holds=sizes)
    yield sample(aten.ones_like.default, reals(6, 4))
    yield sample(aten.new_ones.default, reals(6, 4), [2, 3], holds=sizes)
    yield sample(aten.scalar_tensor.default, 1.5)
    yield sample(aten.arange.default, 5)
    yield sample(aten.arange.start, 1, 5)
    yield sample(aten.arange.start_step, 1, 5, 2)
    yield sample(torch.ops.prims.iota.default, 5, start=1, step=2, dtype=torch.int64,
                 device=torch.device("cpu"), requires_grad=False)  # fmt: skip
    yield sample(aten.eye.default, 3)
    yield sample(aten.eye.m, 3, 2)
    yield sample(aten.linspace.default, 0, 1, 5)


SAMPLES = (*nonlinear(), *linear(), *copies(), *constants())


def _random() -> Iterator[Sample]:
    own = {"generator": torch.Generator()}
    for op in (aten.rand, aten.randn):
        yield sample(op.default, [3])
        yield sample(op.generator, [3], **own)
    for op in (aten.rand_like, aten.randn_like):
        yield sample(op.default, reals(3))
        if hasattr(op, "generator"):
            yield sample(op.generator, reals(3), **own)
    yield sample(aten.randint.default, 5, [3])
    yield sample(aten.randint.generator, 5, [3], **own)
    yield sample(aten.randint.low, 1, 5, [3])
    yield sample(aten.randint.low_generator, 1, 5, [3], **own)
    for name, numbers in (
        ("default", (5,)), ("Tensor", (torch.tensor(5),)), ("low_dtype", (1, 5)),
    ):  # fmt: skip
        if hasattr(aten.randint_like, name):
            yield sample(getattr(aten.randint_like, name), reals(3), *numbers)
    for name, numbers in (
        ("generator", (5,)), ("Tensor_generator", (torch.tensor(5),)),
        ("low_generator_dtype", (1, 5)),
    ):  # fmt: skip
        if hasattr(aten.randint_like, name):
            yield sample(getattr(aten.randint_like, name), reals(3), *numbers, **own)
    yield sample(aten.randperm.default, 4)
    yield sample(aten.randperm.generator, 4, **own)
    yield sample(aten.bernoulli.default, fractions(3))
    yield sample(aten.bernoulli.p, reals(3), 0.5)
    yield sample(aten.bernoulli.Tensor, reals(3), fractions(3))
    yield sample(aten.multinomial.default, fractions(3), 2)
    yield sample(aten.normal.Tensor_float, reals(3))
    yield sample(aten.normal.float_Tensor, 0.0, fractions(3))
    yield sample(aten.normal.Tensor_Tensor, reals(3), fractions(3))
    yield sample(aten.normal.float_float, 0.0, 1.0, [3])
    yield sample(aten.uniform.default, reals(3))
    yield sample(aten.exponential.default, reals(3))
    yield sample(aten.dropout.default, reals(3), 0.5, True)
    yield sample(aten.native_dropout.default, reals(3), 0.5, True)
    yield sample(aten.empty.memory_format, [3])
    yield sample(aten.empty_like.default, reals(3))
    yield sample(aten.new_empty.default, reals(3), [2])
    yield sample(aten.empty_strided.default, [3], [1])
    yield sample(aten.new_empty_strided.default, reals(3), [2], [1])
    yield sample(aten.empty_permuted.default, [3, 2], [0, 1])
    sdpa = aten.scaled_dot_product_attention.default
    yield sample(sdpa, *(reals(1, 1, 2, 4) for _ in range(3)), None, 0.5)


RANDOM = tuple(_random())
