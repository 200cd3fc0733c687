"""Which layer of a model runs while it is captured, and about how long the others will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from compiler.analysis.layers import layer_index


@dataclass
class LayerProgress:
    """Tells a step of the work, and the layer that it is at.

    Attributes:
        tell: shows a text.
        step: what is being done.
    """

    tell: Callable[[str], object]
    step: str = ""
    _layers: dict[int, int] = field(default_factory=dict)  # id of a module -> its layer
    _start: float = 0.0
    _last: int = -1

    def __call__(self, step: str) -> None:
        """Begin a step."""
        self.step, self._last = step, -1
        self.tell(step)

    def watch(self, model: nn.Module) -> None:
        """Count the layers of ``model``, which runs next."""
        paths = {id(module): layer_index(path) for path, module in model.named_modules()}
        self._layers = {key: layer for key, layer in paths.items() if layer is not None}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Tell the layers of models that run inside."""
        hook = register_module_forward_pre_hook(self._enter)
        try:
            yield
        finally:
            hook.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        layer = self._layers.get(id(module), -1)
        if layer <= self._last:
            return
        now, count = time.perf_counter(), max(self._layers.values()) + 1
        if self._last < 0:
            self._start = now
        self._last = layer
        text = f"{self.step}: layer {layer + 1} of {count}"
        if layer > 1:
            text += f", about {(now - self._start) / layer * (count - layer):.0f} s left"
        self.tell(text)
