"""Step-3.5-Flash: sliding and full attention, routed experts with a shared one."""

from .config import ConfigError, Step3p5Config
from .model import Step3p5ForCausalLM
from .parallel import ParallelError

__all__ = ["ConfigError", "ParallelError", "Step3p5Config", "Step3p5ForCausalLM"]
