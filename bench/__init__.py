"""Measure machines and fit their files: beside the compiler, which reads what they say."""
