"""commplan inside vLLM: a general plug-in, and a backend for the whole graph of a model."""
