"""Units of time, as factors. Times are integers of picoseconds, inverse bandwidths femtoseconds."""

from __future__ import annotations

FS_PER_PS = 10**3
FS_PER_US = 10**9
PS_PER_US = 10**6
PS_PER_MS = 10**9
