"""Machines, and the time of collectives on them."""
