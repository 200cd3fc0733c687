"""The families come from transformers, with its own code for sharding (the extra ``hf``)."""

from importlib.util import find_spec

HAS_TRANSFORMERS = find_spec("transformers") and find_spec("transformers.distributed")
HAS_SHARDING = HAS_TRANSFORMERS and find_spec("transformers.distributed.expert_parallel")

HAS_LOADING = HAS_SHARDING and find_spec("accelerate")

collect_ignore = [] if HAS_SHARDING else ["test_families.py"]
collect_ignore += [] if HAS_LOADING else ["test_doors.py"]
