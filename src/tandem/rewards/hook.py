"""Users' functions by dotted path, checked before the run starts."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from tandem.errors import HookError


def load_hook(path: str, *, flag: str, arguments: str, keywords: str = "") -> Callable[..., Any]:
    """The function at `package.module.name`; raises HookError when it cannot be called.

    `arguments` names its positional arguments as the flag's users write them, e.g. "args, sample";
    `keywords` those that are always given by name.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise HookError(f"{flag} {path} is no dotted path; wanted package.module.function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # a user's module may raise anything while it is imported
        raise HookError(
            f"{flag} {path}: importing {module_name} failed with {type(error).__name__}: {error}; "
            "is its folder on PYTHONPATH?"
        ) from error
    hook = getattr(module, name, None)
    if not callable(hook):
        present = [one for one, value in vars(module).items() if inspect.isfunction(value)]
        raise HookError(
            f"{flag} {path}: {module_name} has no function {name!r}; "
            f"its functions are: {', '.join(present) or 'none'}"
        )
    wanted = f"{arguments}, *, {keywords}" if keywords else arguments
    try:
        named = dict.fromkeys(filter(None, keywords.split(", ")))
        inspect.signature(hook).bind(*arguments.split(", "), **named)
    except ValueError:
        return hook  # a builtin that does not tell its signature
    except TypeError as error:
        raise HookError(
            f"{flag} {path} cannot be called as {name}({wanted}): {error}; "
            f"wanted def {name}({wanted})"
        ) from error
    return hook
