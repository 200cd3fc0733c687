"""Facts about values of an SPMD graph, returned as data."""
