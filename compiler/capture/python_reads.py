"""Record which Python state tracing reads. A graph is valid while that state keeps its values.

Attributes of modules are noted as the forward reads them. Of an object, dictionary, list or closure
that is met on the way, all contents count as read, up to ``DEPTH`` containers deep. The functions
that ran, and those they name, give the global names. Opaque are objects of torch, of the standard
library and of extensions.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from compiler.capture.pytrees import PLAIN
from compiler.capture.state_owners import (
    ABSENT,
    OPAQUE_PACKAGES,
    SEQUENCES,
    Change,
    Kind,
    Owner,
    TensorType,
    cells,
    globals_of,
    is_opaque,
    same,
    summary,
)
from compiler.errors import CaptureError

DEPTH = 3
MAX_ITEMS = 1000
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
GLOBAL_HOOKS = ("_global_forward_pre_hooks", "_global_forward_hooks")
TABLES = {"_parameters": Kind.TENSORS, "_buffers": Kind.TENSORS, "_modules": Kind.ATTRIBUTES}
MODULE_FILE = nn.Module.__init__.__code__.co_filename
OWN = frozenset(vars(nn.Module())) - {"training"}
"""Attributes that every module has: hooks and tables, read by torch itself."""


class Reads:
    """The Python state of one model that its forward read.

    Attributes:
        owners: identity of an object -> what was read of it. Objects are kept alive.
        unwatched: what may have been read, and cannot be looked at -> why.
    """

    def __init__(self, model: nn.Module) -> None:
        """Start with nothing read; ``model`` names the modules."""
        self.owners: dict[int, Owner] = {}
        self.unwatched: dict[str, str] = {}
        self._modules = {id(module): (module, name) for name, module in model.named_modules()}
        self._noted: set[tuple[int, str]] = set()
        self._class_reads: dict[tuple[type, str], Any] = {}
        self._functions: dict[types.CodeType, None] = {}
        self._types: dict[str, nn.Module] = {}
        self._ties: list[list[tuple[Owner, Any]]] = []
        self._depths: dict[int, int] = {}
        for name in GLOBAL_HOOKS:
            hooks = getattr(nn.modules.module, name)
            self.owner(hooks, "all modules", Kind.HOOKS, whole=True).values.update(hooks)

    def owner(self, target: Any, name: str, kind: Kind, *, whole: bool = False) -> Owner:
        """Return the owner of ``target``, a new one where there is none."""
        owner_of_target = self.owners.setdefault(id(target), Owner(target, name, kind))
        owner_of_target.whole |= whole
        return owner_of_target

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what modules are asked for; to be put around the model's forward.

        What Dynamo compiles meanwhile, as branches are, is left out: it refuses modules whose
        attributes are read by Python code. Graphs with branches are refused anyway.
        """
        from torch._dynamo import callback  # compilers are imported where something is traced

        get, note, noted = nn.Module.__getattribute__, self._note, self._noted
        handler: Any = callback.callback_handler

        def read(module: nn.Module, name: str) -> Any:
            if (id(module), name) not in noted:
                note(module, name)
            return get(module, name)

        def start(*_: object) -> None:
            setattr(nn.Module, "__getattribute__", read)  # noqa: B010

        def stop(*_: object) -> None:
            if "__getattribute__" in vars(nn.Module):
                del nn.Module.__getattribute__

        handler.register_start_callback(stop)
        handler.register_end_callback(start)
        start()
        try:
            yield
        finally:
            stop()
            handler.remove_start_callback(stop)
            handler.remove_end_callback(start)

    def _note(self, module: nn.Module, name: str) -> None:
        """Note one attribute of a module, looked up as Python and ``nn.Module`` do."""
        if id(module) not in self._modules:
            return
        self._noted.add((id(module), name))
        reader = sys._getframe(2).f_code.co_filename
        if name.startswith("__") and (name != "__dict__" or reader == MODULE_FILE):
            return  # torch reads the dictionary to look one attribute up
        attributes = object.__getattribute__(module, "__dict__")
        path = self._modules[id(module)][1]
        if path not in self._types:
            self._types[path] = module
            self._read_class(type(module), "__call__")
        if name in OWN:
            self._read_own(attributes, path, name)
        elif name == "__dict__":
            self.read_all(module)
        else:
            self._read_value(attributes, path, module, name)

    def _read_own(self, attributes: dict[str, Any], path: str, name: str) -> None:
        if name in HOOKS:
            owner = self.owner(attributes[name], path or "the model", Kind.HOOKS, whole=True)
            owner.values.update(attributes[name])
            for hook in attributes[name].values():
                self.visit(hook, owner.label(0))
        elif name in TABLES:
            owner = self.owner(attributes[name], path, TABLES[name], whole=True)
            owner.values.update(attributes[name])

    def _read_value(
        self, own_attributes: dict[str, Any], path: str, module: nn.Module, name: str
    ) -> None:
        attributes = self.owner(own_attributes, path, Kind.ATTRIBUTES)
        value = attributes.values[name] = own_attributes.get(name, ABSENT)
        if value is not ABSENT:
            self.visit(value, attributes.label(name))
        elif self._read_class(type(module), name) is ABSENT:
            for table in [t for t in TABLES if name in own_attributes[t]] or TABLES:
                entries = attributes.values[table] = own_attributes[table]
                owner = self.owner(entries, path, TABLES[table])
                owner.values[name] = entries.get(name, ABSENT)

    def read_all(self, module: nn.Module) -> None:
        """Count all attributes of a module as read."""
        attributes, path = vars(module), self._modules.setdefault(id(module), (module, ""))[1]
        for name in attributes:
            if name in TABLES:
                self._read_own(attributes, path, name)
            elif name not in OWN:
                self._read_value(attributes, path, module, name)
        self.owners[id(attributes)].whole = True

    def _read_class(self, cls: type, name: str) -> Any:
        """Read an attribute of a class, which any class before its own in the order could hide."""
        if (cls, name) not in self._class_reads:
            value: Any = ABSENT
            for base in cls.__mro__[:-1]:
                value = vars(base).get(name, ABSENT)
                owner = self.owner(base, f"{base.__module__}.{base.__qualname__}", Kind.CLASS)
                owner.values[name] = value
                if value is not ABSENT:
                    self.visit(getattr(value, "fget", None) or value, owner.label(name))
                    break
            self._class_reads[cls, name] = value
        return self._class_reads[cls, name]

    def visit(self, value: Any, name: str, depth: int = 0) -> None:
        """Count what ``value`` holds as read."""
        if isinstance(value, (*PLAIN, torch.Tensor, type, types.ModuleType)):
            return
        if isinstance(value, nn.Module):
            self._visit_module(value, name)
        elif isinstance(value, types.FunctionType):
            self._follow(value)
        elif isinstance(value, types.MethodType):
            self.visit(value.__func__, name, depth)
        elif isinstance(value, functools.partial):
            self.visit((value.func, value.args, value.keywords), name, depth)
        elif isinstance(value, (dict, *SEQUENCES)):
            kind = Kind.ITEMS if isinstance(value, dict) else Kind.SEQUENCE
            self._visit_items(value, value, name, kind, depth)
        elif type(value).__module__.partition(".")[0] in OPAQUE_PACKAGES:
            return
        elif any(vars(cls).get("__slots__") for cls in type(value).__mro__):
            self.unwatched[name] = "its class has __slots__"
        elif isinstance(attributes := getattr(value, "__dict__", None), dict):
            self._visit_items(value, attributes, name, Kind.ATTRIBUTES, depth)

    def _visit_items(self, value: Any, target: Any, name: str, kind: Kind, depth: int) -> None:
        if self._depths.get(id(target), DEPTH + 1) <= depth:
            return
        if depth == DEPTH or len(target) > MAX_ITEMS:
            deep = f"more than {DEPTH} containers deep"
            self.unwatched[name] = deep if depth == DEPTH else f"more than {MAX_ITEMS} items"
            return
        items = Owner(target, name, kind).now()
        if isinstance(target, tuple | frozenset):
            owner = Owner(target, name, kind)  # cannot change
        else:
            owner = self.owner(target, name, kind, whole=True)
            owner.values.update(items)
            self._depths[id(target)] = depth
        for key, item in list(items.items()):
            self.visit(item, owner.label(key), depth + 1)

    def _visit_module(self, module: nn.Module, name: str) -> None:
        """Name a module that is held by other means than as a submodule."""
        if id(module) not in self._modules:
            for path, inner in module.named_modules():
                self._modules[id(inner)] = inner, f"{name}.{path}" if path else name

    def _follow(self, function: types.FunctionType) -> None:
        """Note the global names that a function reads, and what its closure holds."""
        code = function.__code__
        if code in self._functions or is_opaque(function):
            return
        self._functions[code] = None
        for names, key, value in globals_of(code, function.__globals__):
            owner = self.owner(names, str(names.get("__name__")), Kind.GLOBALS)
            owner.values[key] = value
            self.visit(value, owner.label(key))
        if closure := cells(function):
            owner = self.owner(function, function.__qualname__, Kind.CELLS)
            owner.values.update(closure)
            for key, value in closure:
                self.visit(value, owner.label(key))

    def settle(self) -> None:
        """Take tensors as the model holds them, and check the rest; to be called after the trace.

        Raises:
            CaptureError: the forward changed state that it read, so that no graph repeats it.
        """
        types_owner = self.owner(self._types, "", Kind.TYPES)
        types_owner.values = {name: type(module) for name, module in self._types.items()}
        slots: dict[int, list[tuple[Owner, Any]]] = {}
        for owner in self.owners.values():
            now = owner.now()
            for key, value in owner.values.items():
                replaced = owner.kind in (Kind.CLASS, Kind.TENSORS)
                if not replaced and not isinstance(value, torch.Tensor):
                    continue  # tracers replace tensors, and methods; models hide tensors meanwhile
                current = owner.values[key] = now.get(key, ABSENT)
                if owner.kind is Kind.TENSORS and isinstance(current, torch.Tensor):
                    slots.setdefault(id(current), []).append((owner, key))
                    owner.values[key] = TensorType.of(current)
        self._ties = [slot for slot in slots.values() if len(slot) > 1]
        owners = list(self.owners.values())
        if changes := [change for owner in owners for change in self.changes(owner)]:
            raise CaptureError(
                "the model's forward changes Python state that it reads",
                found=summary(changes),
                remedy="a graph runs no Python: keep what changes from call to call in a tensor "
                "that is an argument or a buffer, or fill what is computed once by one call of "
                "the model before it is optimized",
            )

    def changes(self, owner: Owner) -> list[Change]:
        """Return how ``owner`` differs from what was read of it."""
        now, differences = owner.now(), list[Change]()
        for key, old in list(owner.values.items()):
            new = now.get(key, ABSENT)
            if isinstance(old, TensorType):
                new = TensorType.of(new)
            if same(old, new):
                continue
            if self._equal(old, new):
                owner.values[key] = new
                self.visit(new, owner.label(key))
            else:
                differences.append(Change(owner.label(key), old, new))
        if owner.whole:
            added = [key for key in now if key not in owner.values and key not in OWN]
            differences += [Change(owner.label(key), ABSENT, now[key]) for key in added]
        return differences

    def untied(self) -> list[Change]:
        """Return parameters that were one tensor when they were read, and are no longer."""
        return [
            Change(f"{first.label(key)} is {other.label(name)}", True, False)
            for (first, key), *others in self._ties
            for other, name in others
            if first.now().get(key) is not other.now().get(name)
        ]

    def bind(self, table: dict[str, Any], key: str) -> None:
        """Let any tensor of the same type stand at ``key``: the graph gets it at every call."""
        owner = self.owner(table, "", Kind.TENSORS)
        owner.values[key] = TensorType.of(table.get(key, ABSENT))

    def _equal(self, old: Any, new: Any) -> bool:
        """Return whether a container holds what another did when it was read."""
        if same(old, new):
            return True
        if type(old) is not type(new) or type(old) not in (dict, *SEQUENCES):
            return False
        owner = self.owners.get(id(old))
        kind = Kind.ITEMS if isinstance(old, dict) else Kind.SEQUENCE
        before = owner.values if owner else Owner(old, "", kind).now()
        after = Owner(new, "", kind).now()
        return before.keys() == after.keys() and all(
            self._equal(value, after[key]) for key, value in before.items()
        )
