"""Options of the backend."""

from datetime import timedelta
from typing import Any

import pytest

from compiler.backend.backend_options import BackendOptions
from compiler.errors import CommPlanError


def test_what_is_left_out_has_its_default() -> None:
    assert BackendOptions.of(None) == BackendOptions.of({}) == BackendOptions()
    options = BackendOptions.of({"policy": "merge", "timeout_s": 2})
    assert (options.policy, options.timeout) == ("merge", timedelta(seconds=2))
    assert BackendOptions().timeout is None


def test_a_mode_is_options_of_inductor() -> None:
    assert BackendOptions.of({}, "default") == BackendOptions()
    assert BackendOptions.of({}, "reduce-overhead").inductor == {"triton.cudagraphs": True}


@pytest.mark.parametrize(
    ("options", "mode", "message"),
    [
        (
            {"polici": "merge"},
            None,
            "the backend has no option 'polici': 'policy'?\n"
            "  found: it has policy, machine, launch, verify, kernels, inner, on_failure, "
            "timeout_s, debug, inductor\n"
            '  remedy: pass options of Inductor as options={"inductor": {…}}',
        ),
        ({"policy": "best"}, None, "unknown policy\n  found: 'best'"),
        ({"machine": "abacus"}, None, "abacus"),
        ({"launch": "later"}, None, "unknown launch\n  found: 'later'"),
        ({"kernels": "on"}, None, "unknown kernels\n  found: 'on'"),
        (
            {"inner": "aot_eager"},
            None,
            "option 'inner' does not take this\n"
            "  found: 'aot_eager'\n"
            "  remedy: one of inductor, eager",
        ),
        ({"on_failure": "ignore"}, None, "remedy: one of warn, raise"),
        ({"verify": 1}, None, "option 'verify' does not take this\n  found: 1"),
        ({"timeout_s": 0}, None, "remedy: seconds above 0, or None"),
        ({"timeout_s": True}, None, "remedy: seconds above 0, or None"),
        ({"inductor": True}, None, "option 'inductor' does not take this"),
        (
            {"inductor": {"max_autotun": True}},
            None,
            "Inductor has no option 'max_autotun'\n"
            "  found: options['inductor']\n"
            "  remedy: did you mean 'max_autotune'?",
        ),
        ({}, "fast", "option 'mode' does not take this\n  found: 'fast'"),
    ],
)
def test_wrong_options(options: dict[str, Any], mode: str | None, message: str) -> None:
    with pytest.raises(CommPlanError) as caught:
        BackendOptions.of(options, mode)
    assert message in str(caught.value)
