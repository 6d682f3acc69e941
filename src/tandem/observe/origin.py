"""Where a run comes from: its command, settings, code, libraries and machine, without secrets."""

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tandem import __version__
from tandem.config import Config, to_dict

HIDDEN = "(secret)"
LIBRARIES = ("torch", "transformers", "numpy", "safetensors", "math-verify", "ray", "sglang")
GIB = 1024**3

_SECRET_NAME = re.compile(
    r"(^|[-_])((api|access|wandb)[-_]?key|token|secret|password)$", re.IGNORECASE
)
_ENVIRONMENT_FLAG = "train-env-vars"
"""Its value may hold anything, so a command is shown without it; settings are told apart."""


def describe_origin(command: Sequence[str] = ()) -> dict[str, Any]:
    """What another person needs to know to run this again: command, code, libraries, machine."""
    return {
        "command": hide_secrets_of_command(command or sys.argv),
        "folder": str(Path.cwd()),
        "commit": read_commit(Path.cwd()),
        "versions": describe_versions(),
        "machine": describe_machine(),
    }


def describe_versions() -> dict[str, str]:
    """Versions of Tandem, Python and the libraries whose behaviour a run depends on."""
    versions = {"tandem": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_machine() -> dict[str, Any]:
    """Host, processor, memory and GPUs. GPUs are named only if torch is loaded already."""
    machine: dict[str, Any] = {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor_name(),
        "num_cores": _num_cores(),
        "memory_gib": _memory_gib(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        machine["gpus"] = [
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        ]
    return machine


def read_commit(folder: Path) -> str | None:
    """The commit that is checked out in `folder` or above it, read without starting git."""
    for parent in (folder, *folder.parents):
        git = parent / ".git"
        if not git.exists():
            continue
        if git.is_file():  # a worktree names its folder there
            git = (parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        return _resolve_head(git)
    return None


def hide_secrets_of_command(command: Sequence[str]) -> list[str]:
    """The command line with the values of flags that carry keys blanked."""
    shown: list[str] = []
    is_secret = False
    for word in command:
        name, equals, _ = word.partition("=")
        if word.startswith("--"):
            flag = name.removeprefix("--")
            is_secret = flag == _ENVIRONMENT_FLAG or _SECRET_NAME.search(flag) is not None
            shown.append(f"{name}={HIDDEN}" if is_secret and equals else word)
        else:
            shown.append(HIDDEN if is_secret else word)
    return shown


def describe_settings(config: Config) -> dict[str, Any]:
    """The configuration as JSON values; whatever carries a key is blanked, wherever it stands."""
    return _hide(to_dict(config))


def _hide(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if one and _SECRET_NAME.search(name) else _hide(one)
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [_hide(one) for one in value]
    return value


def _resolve_head(git: Path) -> str | None:
    try:
        head = (git / "HEAD").read_text().strip()
    except OSError:
        return None
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    for folder in (git, _common_folder(git)):
        if (folder / name).is_file():
            return (folder / name).read_text().strip()
        packed = folder / "packed-refs"
        if packed.is_file():
            for line in packed.read_text().splitlines():
                if line.endswith(f" {name}"):
                    return line.split()[0]
    return None


def _common_folder(git: Path) -> Path:
    pointer = git / "commondir"
    return (git / pointer.read_text().strip()).resolve() if pointer.is_file() else git


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return round(total / GIB, 1)
