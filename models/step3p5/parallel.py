"""Tensor parallelism over one group of ranks: who holds which slice, and the sums between them."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

# Newer releases deprecate the first name in favour of the second; both gather along dim 0.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class ParallelError(ValueError):
    """A dimension that cannot be divided over the ranks, or a group that cannot be used."""


@dataclass(frozen=True)
class RankGroup:
    """The ranks that share one copy of the model, seen from one of them."""

    group: dist.ProcessGroup | None
    rank: int
    size: int

    @classmethod
    def of(cls, group: dist.ProcessGroup | DeviceMesh | None) -> "RankGroup":
        """Reads rank and size; None means one process that holds the whole model."""
        if group is None:
            return cls(None, 0, 1)
        if isinstance(group, DeviceMesh):
            if group.ndim != 1:
                raise ParallelError(
                    f"group must be a device mesh of 1 dimension, found {group.ndim}; "
                    "select one, for example mesh['tp']"
                )
            group = group.get_group()
        if not isinstance(group, dist.ProcessGroup):
            raise ParallelError(
                f"group must be a ProcessGroup, a 1-D DeviceMesh or None, found {group!r}; "
                "a rank outside the group must not build the model"
            )
        return cls(group, dist.get_rank(group), dist.get_world_size(group))

    def split(self, what: str, total: int) -> int:
        """The share of one rank in ``total``; ``what`` names the dimension in the error."""
        if total % self.size:
            raise ParallelError(
                f"{what} = {total} cannot be divided over {self.size} ranks (remainder "
                f"{total % self.size}); use a world size that divides {total}"
            )
        return total // self.size

    def all_reduce(self, partial: Tensor) -> Tensor:
        """Sums ``partial`` over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(partial, group=self.group)
        return partial

    def all_gather_columns(self, shard: Tensor) -> Tensor:
        """Joins [rows, columns / size] of every rank to [rows, columns]."""
        if self.size == 1:
            return shard
        rows, columns = shard.shape
        gathered = shard.new_empty(self.size * rows, columns)
        all_gather(gathered, shard, group=self.group)
        by_row = gathered.view(self.size, rows, columns).transpose(0, 1)
        return by_row.reshape(rows, self.size * columns)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RankGroup":
        return copy.copy(self)  # a copied model talks over the same group; groups cannot be copied


@dataclass(frozen=True)
class Shard:
    """Block ``index`` of ``count`` equal contiguous blocks along ``dim``."""

    dim: int
    index: int
    count: int

    def of(self, full: Tensor) -> Tensor:
        """This block of ``full``, as a view."""
        length = full.shape[self.dim] // self.count
        return full.narrow(self.dim, self.index * length, length)


class RowParallelLinear(nn.Linear):
    """y = sum over ranks of x_r W_r^T; the rank holds columns of W that match its slice of x."""

    def __init__(
        self, in_features: int, out_features: int, ranks: RankGroup, **factory: Any
    ) -> None:
        super().__init__(in_features, out_features, bias=False, **factory)
        self.ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, in / size], sharded over dim 1, to [tokens, out], replicated."""
        return self.ranks.all_reduce(super().forward(x))


class VocabParallelEmbedding(nn.Module):
    """Token embedding with the vocabulary cut into one contiguous block per rank.

    Each rank looks up the tokens of its own block, leaves zeros for the others, and the sum over
    the ranks is the embedding.
    """

    def __init__(self, vocab_size: int, hidden_size: int, ranks: RankGroup, **factory: Any) -> None:
        super().__init__()
        self.ranks = ranks
        self.vocab_per_rank = ranks.split("vocab_size", vocab_size)
        self.weight = nn.Parameter(torch.empty(self.vocab_per_rank, hidden_size, **factory))

    def forward(self, ids: Tensor) -> Tensor:
        """[tokens], int64, to [tokens, hidden], both replicated."""
        if self.ranks.size == 1:
            return F.embedding(ids, self.weight)
        local = ids - self.ranks.rank * self.vocab_per_rank
        owned = (local >= 0) & (local < self.vocab_per_rank)
        rows = F.embedding(torch.where(owned, local, 0), self.weight)
        return self.ranks.all_reduce(torch.where(owned.unsqueeze(-1), rows, 0))
