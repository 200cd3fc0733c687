"""A tensor-parallel model, and a factory that builds it with the arguments of a call."""

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as funcol


class MLP(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = 128 // dist.get_world_size()
        self.up = torch.nn.Linear(64, width, bias=False)
        self.down = torch.nn.Linear(width, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(self.up(x).relu())
        return funcol.all_reduce(y, "sum", dist.group.WORLD)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.routed, self.shared = MLP(), MLP()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.routed(x) + self.shared(x)


class Decoder(torch.nn.Module):
    tp_plan = {"layers.*.*.up": "colwise", "layers.*.*.down": "rowwise"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def decoder() -> tuple[Decoder, tuple[torch.Tensor]]:
    return Decoder(), (torch.ones(6, 64),)
