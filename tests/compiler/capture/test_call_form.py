import pytest
import torch
from torch import nn

from compiler.capture import CallForm
from compiler.errors import CaptureError


class Model(nn.Module):
    def forward(self, x, cache=None, *, scale=1.0, **more):
        return x


class Variadic(nn.Module):
    def forward(self, x, *rest):
        return x


X, CACHE = torch.zeros(2), (torch.ones(1), torch.ones(2))


def flat(*args, **kwargs):
    given = CallForm.of(Model()).flatten(args, kwargs)
    return given.spec, given.leaves


def test_keyword_and_positional_calls_are_the_same():
    assert flat(X, CACHE, scale=2.0) == flat(scale=2.0, cache=CACHE, x=X)


def test_defaults_are_the_same_as_arguments_left_out():
    assert flat(X, None, scale=1.0) == flat(X)


def test_another_constant_is_another_call():
    assert flat(X, scale=2.0) != flat(X, scale=3.0)
    assert flat(X, scale=2.0) != flat(X)


def test_extra_keywords_have_one_order():
    assert flat(X, a=1, b=2) == flat(X, b=2, a=1)


def test_leaves_are_named_after_arguments():
    form = CallForm.of(Model())
    given = form.flatten((X,), {"cache": {"key": X, "value": X}, "flag": True})
    assert form.names(given) == ("x", "cache_key", "cache_value", "flag")


def test_variadic_arguments_stay_positional():
    form = CallForm.of(Variadic())
    given = form.flatten((X, X, X), {})
    assert form.names(given) == ("x", "rest", "arg_2")
    assert form.canonical((X, X), {}) == ((X, X), {})


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(CaptureError, match="missing a required argument: 'x'"):
        flat(scale=1.0)
