"""``vllm:ARCHITECTURE`` without vLLM: one error that says what to install."""

import importlib.util

import pytest

from compiler.cli.inputs.load_model import load
from compiler.cli.inputs.options import InputOptions
from compiler.cli.render.progress import Stages
from compiler.errors import CommPlanError


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_where_vllm_is_not_installed() -> None:
    with pytest.raises(CommPlanError, match="not installed") as error:
        load("vllm:LlamaForCausalLM", InputOptions(), Stages())
    assert "commplan[vllm]" in error.value.remedy
