"""Model definitions: plain PyTorch modules that know nothing of the compiler."""
