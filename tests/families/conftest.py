"""The families come from transformers, with its own code for sharding (the extra ``hf``)."""

from importlib.util import find_spec

HAS_TRANSFORMERS = find_spec("transformers") and find_spec("transformers.distributed")
HAS_SHARDING = HAS_TRANSFORMERS and find_spec("transformers.distributed.expert_parallel")

collect_ignore = [] if HAS_SHARDING else ["test_families.py"]
