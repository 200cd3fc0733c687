"""The public names of commplan: those of the package ``compiler``, the same objects.

They are imported when they are first used, as there.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import compiler

if TYPE_CHECKING:
    from compiler import *  # noqa: F403 -- its __all__ says which

if Path(str(compiler.__file__)).parent.parent != Path(__file__).parent.parent:
    raise ImportError(
        "commplan needs its own package 'compiler', and another one of this name comes first: "
        f"{compiler.__file__}"
    )

__all__ = compiler.__all__


def __getattr__(name: str) -> Any:
    """Return a name of ``compiler``."""
    return getattr(compiler, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
