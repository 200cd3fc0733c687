"""Kernels that reduce over ranks through symmetric memory, fused with add + RMSNorm.

Importing this package defines the ops ``torch.ops.commplan.*`` (see ``ops``) and needs neither
Triton nor a GPU; running them does.
"""

from compiler.runtime.kernels import ops as ops
from compiler.runtime.kernels import select as select
from compiler.runtime.kernels.workspace import Workspace

__all__ = ["Workspace"]
