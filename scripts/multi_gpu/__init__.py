"""Parts of ``scripts/bench_multi_gpu``: links, kernels, a model, and predictions of all three."""
