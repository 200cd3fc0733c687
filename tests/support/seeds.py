"""How many random cases a test draws: a quarter for every change, all in scripts/campaign."""

import os

IN_CAMPAIGN = os.environ.get("COMMPLAN_CAMPAIGN") == "1"


def share(count: int) -> int:
    """Return how many of ``count`` cases are drawn now; at least one."""
    return count if IN_CAMPAIGN else -(-count // 4)
