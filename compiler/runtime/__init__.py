"""Running rewritten graphs: process groups, exchange between ranks, the callable module."""
