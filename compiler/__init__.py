"""Communication planning for tensor-parallel PyTorch models."""
