"""Times of collectives and kernels on machines: a model with stated sources and validity."""

from compiler.cost.collective_times import Shape, shape_of
from compiler.cost.compute import Work, work
from compiler.cost.machine import Machine
from compiler.cost.machine_files import load_machine, machine_with, machines
from compiler.cost.tables import Fused, Launch, MachineError

__all__ = [
    "Fused",
    "Launch",
    "Machine",
    "MachineError",
    "Shape",
    "Work",
    "load_machine",
    "machine_with",
    "machines",
    "shape_of",
    "work",
]
