"""Times of collectives and kernels on machines: a model with stated sources and validity."""

from compiler.cost.compute import Work, work
from compiler.cost.machine import Machine
from compiler.cost.machine_files import load_machine, machine_with, machines
from compiler.cost.tables import Launch, MachineError

__all__ = [
    "Launch",
    "Machine",
    "MachineError",
    "Work",
    "load_machine",
    "machine_with",
    "machines",
    "work",
]
