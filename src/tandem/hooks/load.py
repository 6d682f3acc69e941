"""Users' functions by dotted path, checked when the run starts."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tandem.errors import HookError

OURS = (
    "`from slime.utils.types import Sample` by `from tandem.hooks import Sample`; "
    "`from slime.rollout.base_types import ...` by "
    "`from tandem.hooks import RolloutFnTrainOutput, RolloutFnEvalOutput`; "
    "`from slime.rollout.filter_hub.base_types import ...` by "
    "`from tandem.hooks import DynamicFilterOutput`; "
    "`from slime.utils.http_utils import post` by `from tandem.hooks import post`; "
    "slime's own generate by `tandem.hooks.generate` and "
    "`GenerateState(args).tokenizer` by `tandem.hooks.tokenizer()`"
)
"""What to write instead of an import of slime."""


@dataclass(frozen=True, slots=True)
class Spec:
    """How a hook is called: its flag, positional arguments, and arguments by keyword."""

    flag: str
    arguments: str
    keywords: str = ""  # always given
    optional: str = ""  # given when its signature has it
    kind: str = "function"  # or "coroutine function", "class", "either"

    @property
    def wanted(self) -> str:
        """Its definition, as a user would write it."""
        if self.kind == "class":
            return "class Name"
        stars = f", *, {self.keywords}" if self.keywords else ""
        start = "async def" if self.kind == "coroutine function" else "def"
        return f"{start} name({self.arguments}{stars})"


@dataclass(frozen=True, slots=True)
class Hook:
    """A user's function and what to call it in a message."""

    spec: Spec
    path: str
    call: Callable[..., Any]
    optional: frozenset[str] = frozenset()  # arguments that its signature has beside the usual

    @property
    def name(self) -> str:
        return f"{self.spec.flag} {self.path}"

    def failed(self, error: BaseException, where: str) -> HookError:
        """The error that says which hook raised, on what."""
        return HookError(
            f"{self.name} raised {type(error).__name__} on {where}: {error}; "
            f"it is called as {self.spec.wanted}"
        )

    @contextmanager
    def at_work(self, where: str, *, passes: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Makes of whatever is raised inside, but for what `passes`, the error that names it."""
        try:
            yield
        except passes:
            raise
        except Exception as error:
            raise self.failed(error, where) from error


def load(path: str, spec: Spec) -> Hook:
    """The hook at `package.module.name`; raises HookError when it cannot be called as wanted."""
    said = f"{spec.flag} {path}"
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise HookError(f"{said} is no dotted path; wanted package.module.function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # a user's module may raise anything while it is imported
        raise HookError(_import_failure(said, module_name, error)) from error
    call = getattr(module, name, None)
    if not callable(call):
        present = [one for one, value in vars(module).items() if inspect.isfunction(value)]
        raise HookError(
            f"{said}: {module_name} has no function {name!r}; "
            f"its functions are: {', '.join(present) or 'none'}"
        )
    optional = _optional(call, said, spec)
    if spec.kind == "class" and not inspect.isclass(call):
        raise HookError(f"{said} is no class; wanted a class")
    is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
        getattr(call, "__call__", None)  # noqa: B004 - an object with an async __call__ will do
    )
    if spec.kind == "coroutine function" and not is_async:
        raise HookError(
            f"{said}: {name} is not async, and sampling would stand still while it "
            f"runs; wanted {spec.wanted}"
        )
    if spec.kind == "function" and is_async:
        raise HookError(f"{said}: {name} is async; wanted {spec.wanted}")
    return Hook(spec, path, call, optional)


def _optional(call: Callable[..., Any], said: str, spec: Spec) -> frozenset[str]:
    """The optional arguments that the signature has; raises HookError if it lacks a wanted one."""
    try:
        signature = inspect.signature(call)
    except ValueError:
        return frozenset()  # a builtin that does not tell its signature
    keywords = dict.fromkeys(filter(None, spec.keywords.split(", ")))
    try:
        signature.bind(*spec.arguments.split(", "), **keywords)
    except TypeError as error:
        raise HookError(f"{said} cannot be called: {error}; wanted {spec.wanted}") from error
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    takes_all = inspect.Parameter.VAR_KEYWORD in kinds
    names = filter(None, spec.optional.split(", "))
    return frozenset(one for one in names if takes_all or one in signature.parameters)


def _import_failure(said: str, module_name: str, error: Exception) -> str:
    """What went wrong, and what to write instead where slime itself was imported."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None or missing.partition(".")[0] != "slime":
        return (
            f"{said}: importing {module_name} failed with {type(error).__name__}: {error}; "
            "is its folder on PYTHONPATH?"
        )
    if module_name.startswith("slime"):
        return (
            f"{said}: slime is not installed here, and this function of it has no "
            "counterpart; copy it into a module of yours and give its path"
        )
    return f"{said}: its module imports slime, which is not installed here. Replace {OURS}"
