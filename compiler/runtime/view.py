"""The result of the optimizer, used like the model: an instance of a subclass of its class.

A view has the model's own ``__dict__``, so that no attribute can differ, and nothing is copied.
Called, it runs graphs; all else is the model's: ``config``, ``generate()``, ``state_dict()``,
``train()``, ``to()``. The model itself stays as it was.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, cast

from torch import fx, nn

from compiler.errors import CommPlanError
from compiler.runtime.module import OptimizedModule, not_copied

PUBLIC = ("original", "prepared", "report", "reports", "graph_module", "prepare_call")
"""Attributes of an ``OptimizedModule`` that a view has, too, where the model has none so named."""


class OptimizedView(nn.Module):
    """A model that runs proven graphs, with all that ``OptimizedModule`` tells of them.

    Attributes:
        optimized: the module that makes and runs the graphs.
    """

    optimized: OptimizedModule
    original: nn.Module
    report: Any
    reports: tuple[Any, ...]
    graph_module: Callable[[int], fx.GraphModule]
    prepare_call: Callable[..., Any]

    def __init_subclass__(cls) -> None:
        """Not that of the model's class: a view is not one more class of models."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result; its hooks, also those of the root, are part of the graph."""
        run = self.optimized
        return (run._compiled_call_impl or run.forward)(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the graphs that run, as ``torch.compile`` of this module does."""
        self.optimized.compile(*args, **kwargs)

    def __copy__(self) -> NoReturn:
        raise not_copied()

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise not_copied()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise not_copied()


class _Forward:
    """``forward`` of a view: before any that an instance has; a class gives the model's own."""

    def __get__(self, view: Any, cls: type) -> Any:
        if view is None:
            return super(OptimizedView, cls).forward  # type: ignore[misc]

        @functools.wraps(
            view.optimized.original.forward
        )  # with its signature, which generate() reads
        def forward(*args: Any, **kwargs: Any) -> Any:
            return view(*args, **kwargs)

        return forward

    def __set__(self, view: Any, value: object) -> NoReturn:
        raise CommPlanError(
            "the forward of an optimized model cannot be replaced",
            remedy="replace that of the model, its attribute .original: the next call is captured "
            "anew",
        )


def view_of(run: OptimizedModule) -> OptimizedModule | OptimizedView:
    """A view of ``run.original``; ``run`` itself for graphs, and where no view can be made.

    Warns where a class allows no subclass, or an attribute of the model hides one of the view.

    Raises:
        CommPlanError: the model has an attribute ``optimized``.
    """
    model = run.original
    if isinstance(model, fx.GraphModule):
        return run
    if hasattr(model, "optimized"):
        raise CommPlanError(
            "the model has an attribute named 'optimized', as its view must have",
            where=type(model).__qualname__,
            remedy="rename the model's attribute",
        )
    hidden = [name for name in PUBLIC if hasattr(model, name)]
    if hidden:
        warnings.warn(
            f"{', '.join(hidden)} of the optimized model {'is' if len(hidden) == 1 else 'are'} the "
            "model's own: read what the optimizer tells from its attribute .optimized",
            stacklevel=4,
        )
    try:
        view: Any = object.__new__(_class_of(run, [name for name in PUBLIC if name not in hidden]))
        object.__setattr__(view, "__dict__", vars(model))
    except TypeError as error:
        warnings.warn(
            f"the optimized model can be called, and is not a {type(model).__qualname__}: {error}",
            stacklevel=4,
        )
        return run
    return cast(OptimizedView, view)


def _class_of(run: OptimizedModule, public: list[str]) -> type:
    cls = type(run.original)
    space: dict[str, Any] = {
        "__slots__": (),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "optimized": property(lambda self: run),
        "forward": _Forward(),
    }
    space |= {name: _of(run, name) for name in public}
    space |= {name: _of(run.original, name) for name in _slots(cls)}
    if hasattr(cls, "get_compiled_call"):  # generate() of transformers, with static caches on CUDA
        space["get_compiled_call"] = lambda self, compile_config=None: self.__call__
    bases = (OptimizedView, cls)
    return types.new_class(cls.__name__, bases, exec_body=lambda body: body.update(space))


def _of(owner: object, name: str) -> property:
    """An attribute of ``owner``, read and written there."""
    if name in PUBLIC:
        return property(lambda self: getattr(owner, name))
    return property(
        lambda self: getattr(owner, name),
        lambda self, value: setattr(owner, name, value),
        lambda self: delattr(owner, name),
    )


def _slots(cls: type) -> list[str]:
    """Names of what instances hold outside of their dictionary."""
    return [
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, types.MemberDescriptorType)
    ]
