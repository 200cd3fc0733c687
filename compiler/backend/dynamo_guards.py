"""A guard on what Dynamo does not watch: hooks, and methods replaced on classes.

By default Dynamo skips its guards on the hooks of modules that had none
(``skip_nnmodule_hook_guards``), asks about global hooks once, and reads methods off a class
without a guard; before 2.13 it does not ask for a module's class again either. Where one of these
changes, this guard fails, and Dynamo traces anew.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._dynamo.source import GlobalStateSource
from torch._guards import Guard, TracingContext
from torch.nn.modules import module as nn_module
from torch.utils.hooks import RemovableHandle

from compiler.runtime import dict_writes

EMPTY_HOOKS = "EMPTY_NN_MODULE_HOOKS_DICT"
"""Name of the guard that Dynamo makes of every hook dictionary it reads, and skips."""

ASKS_FOR_CLASSES = torch.__version__ >= torch.torch_version.TorchVersion("2.13")
"""Whether Dynamo's own guards fail where a module has got another class."""
MISSES_ATTRIBUTES = dict_writes.HELD_BY_OBJECTS and not ASKS_FOR_CLASSES
"""Whether Dynamo's own guards may not notice that an attribute was changed; seen with 2.11."""
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


def guard_modules() -> None:
    """Guard the modules of the frame that Dynamo is compiling."""
    context = TracingContext.try_get()
    if context is None:  # called without Dynamo
        return
    if MISSES_ATTRIBUTES:
        warnings.warn(
            f"under torch.compile, PyTorch {torch.__version__} on Python 3.13 or newer may not "
            "notice that attributes of a model were changed after its first call, and run the "
            "former graph: use compiler.optimize_allreduce, which notices, or PyTorch 2.13",
            stacklevel=2,
        )
    guards = context.guards_context.dynamo_guards
    hooks = [guard for guard in guards if guard.create_fn_name() == EMPTY_HOOKS]
    guards.add(Guard(GlobalStateSource(), partial(_create, hooks=hooks)))


def _create(builder: Any, guard: Guard, *, hooks: Sequence[Guard]) -> None:
    """Add the guard to the frame's; called by Dynamo once the frame is compiled."""
    dictionaries = [_value(builder, each.originating_source) for each in hooks]
    owners = {_value(builder, each.originating_source.base) for each in hooks}  # type: ignore[attr-defined]
    modules = {owner for owner in owners if isinstance(owner, nn.Module)}
    builder.guard_manager.root.add_lambda_guard(
        unchanged(dictionaries, modules),
        ["commplan: no hook was added, and no method of a module's class replaced"],
        *_user_stack(builder.guard_manager.root, guard),
    )


def _value(builder: Any, source: Any) -> Any:
    """What a source stands for in the frame."""
    try:
        return builder.get(source)
    except (AttributeError, TypeError):  # older: by name
        name = source.name
        return builder.get(name() if callable(name) else name)


def _user_stack(root: Any, guard: Guard) -> list[Any]:
    """The third argument of ``add_lambda_guard``, where it takes one."""
    return [guard.user_stack] if "arg2" in root.add_lambda_guard.__doc__ else []


def unchanged(
    hooks: Sequence[dict[Any, Any]], modules: Collection[nn.Module]
) -> Callable[[Any], bool]:
    """A function that tells whether the modules are called as they were when it was made.

    Args:
        hooks: dictionaries of hooks, empty.
        modules: those that are called; not kept alive.
    """
    of_class = [] if ASKS_FOR_CLASSES else [(weakref.ref(m), type(m)) for m in modules]
    classes = dict.fromkeys(map(type, modules))
    shared = [vars(nn_module)[name] for name in GLOBAL_HOOKS]
    before, busy = [list(table) for table in shared], any(map(bool, shared))
    # A class shows its dictionary through a proxy; the version is the dictionary's own.
    parents = dict.fromkeys(parent for c in classes for parent in c.__mro__ if parent is not object)
    tables = [gc.get_referents(vars(parent))[0] for parent in parents]
    defined = [dict(table) for table in tables]
    for table in tables:
        dict_writes.watch(table)
    counted, versions = RemovableHandle.next_id, list(map(dict_writes.version, tables))

    def check(_: Any) -> bool:
        nonlocal counted, versions
        if RemovableHandle.next_id != counted or busy:  # hooks take a number when they are added
            if any(hooks) or [list(table) for table in shared] != before:
                return False
            counted = RemovableHandle.next_id
        if (now := list(map(dict_writes.version, tables))) != versions:
            if not all(map(_same, tables, defined)):
                return False
            versions = now
        return all(type(module()) is kind for module, kind in of_class)

    return check


def _same(table: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a class defines what it did, object by object."""
    return table.keys() == before.keys() and all(table[name] is before[name] for name in table)
