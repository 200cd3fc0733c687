"""The plug-in that vLLM loads in each of its processes: notes the layers that it builds."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

LAYERS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""Layer whose weights are declared -> the configuration that it was built for."""


def register() -> None:
    """Note layers from now on."""
    from vllm.config import get_current_vllm_config_or_none

    from compiler.engines.vllm.weights import declaring_classes

    classes = declaring_classes()

    def note(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if isinstance(module, classes) and module not in LAYERS:
            LAYERS[module] = get_current_vllm_config_or_none()

    register_module_parameter_registration_hook(note)
