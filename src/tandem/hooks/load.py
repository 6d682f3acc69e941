"""Users' functions by dotted path, checked when the run starts."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tandem.errors import HookError
from tandem.rewards.hook import load_hook

OURS = {
    "slime.utils.types": "`from slime.utils.types import Sample` by "
    "`from tandem.hooks import Sample`",
    "slime.rollout.base_types": "`from slime.rollout.base_types import ...` by "
    "`from tandem.hooks import RolloutFnTrainOutput, RolloutFnEvalOutput`",
    "slime.rollout.filter_hub": "`from slime.rollout.filter_hub.base_types import ...` by "
    "`from tandem.hooks import DynamicFilterOutput`",
    "slime.utils.http_utils": "`from slime.utils.http_utils import post` by "
    "`from tandem.hooks import post`",
    "slime.rollout.sglang_rollout": "slime's own generate by `tandem.hooks.generate` and "
    "`GenerateState(args).tokenizer` by `tandem.hooks.tokenizer()`",
}
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


def load(path: str, spec: Spec) -> Hook:
    """The hook at `package.module.name`; raises HookError when it cannot be called as wanted."""
    try:
        call = load_hook(path, flag=spec.flag, arguments=spec.arguments, keywords=spec.keywords)
    except HookError as error:
        raise _explained(path, spec, error) from error.__cause__
    name = path.rpartition(".")[2]
    if spec.kind == "class" and not inspect.isclass(call):
        raise HookError(f"{spec.flag} {path} is no class; wanted a class")
    is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
        getattr(call, "__call__", None)  # noqa: B004 - an object with an async __call__ will do
    )
    if spec.kind == "coroutine function" and not is_async:
        raise HookError(
            f"{spec.flag} {path}: {name} is not async, and sampling would stand still while it "
            f"runs; wanted {spec.wanted}"
        )
    if spec.kind == "function" and is_async:
        raise HookError(f"{spec.flag} {path}: {name} is async; wanted {spec.wanted}")
    return Hook(spec, path, call, _optional(call, path, spec))


def _optional(call: Callable[..., Any], path: str, spec: Spec) -> frozenset[str]:
    """The optional arguments that the signature has; raises HookError if it lacks a keyword."""
    try:
        signature = inspect.signature(call)
    except ValueError:
        return frozenset()  # a builtin that does not tell its signature
    positional = spec.arguments.split(", ")
    keywords = dict.fromkeys(filter(None, spec.keywords.split(", ")))
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        raise HookError(
            f"{spec.flag} {path} cannot be called: {error}; wanted {spec.wanted}"
        ) from error
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    takes_all = inspect.Parameter.VAR_KEYWORD in kinds
    names = filter(None, spec.optional.split(", "))
    return frozenset(one for one in names if takes_all or one in signature.parameters)


def _explained(path: str, spec: Spec, error: HookError) -> HookError:
    """The error, with what to write instead where slime itself was imported."""
    cause = error.__cause__
    missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
    if missing is None or missing.partition(".")[0] != "slime":
        return error
    if path.startswith("slime."):
        return HookError(
            f"{spec.flag} {path}: slime is not installed here, and this function of it has no "
            "counterpart; copy it into a module of yours and give its path"
        )
    replacements = "; ".join(OURS.values())
    return HookError(
        f"{spec.flag} {path}: its module imports slime, which is not installed here. "
        f"Replace {replacements}"
    )
