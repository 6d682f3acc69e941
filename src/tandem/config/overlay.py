"""YAML files: settings that win over the command line, and evaluation sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tandem.config import passthrough
from tandem.config.fields import WrongValue, flag_of, from_yaml, knobs
from tandem.config.given import Given, take_foreign, take_old, wanted_words
from tandem.config.legacy import old_flags
from tandem.config.nearest import nearest

OPPOSITES = {
    "grpo_std_normalization": "disable_grpo_std_normalization",
    "rewards_normalization": "disable_rewards_normalization",
    "compute_advantages_and_returns": "disable_compute_advantages_and_returns",
    "rollout_global_dataset": "disable_rollout_global_dataset",
    "wandb_random_suffix": "disable_wandb_random_suffix",
    "check_for_nan_in_loss_and_grad": "no_check_for_nan_in_loss_and_grad",
}
"""The dialect's attributes that are set by a `--disable-` or `--no-` flag, and our fields."""


def read_files(given: Given) -> None:
    """Puts what the named YAML files say into `given`."""
    path = given.values.get("custom_config_path")
    if path:
        content = read_yaml(f"--custom-config-path {path}", path, given.failures)
        if isinstance(content, Mapping):
            for key, value in content.items():
                _entry(given, str(key).replace("-", "_"), value, origin=f"yaml {path}")
        elif content is not None:
            given.failures.append(f"--custom-config-path {path}: wanted `name: value` lines")
    path = given.values.get("eval_config")
    if path:
        given.eval_file = read_yaml(f"--eval-config {path}", path, given.failures)
        if given.eval_file is None:
            given.broken.add("eval_config")


def read_yaml(flag: str, path: str, failures: list[str]) -> Any:
    """What the file holds, {} where that is nothing; None where it cannot be read, said in
    `failures` of `flag`."""
    import yaml  # not standard library, and few runs name a file

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        failures.append(f"{flag} cannot be read: {error.strerror}; give a YAML file")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        failures.append(f"{flag} is no YAML: {' '.join(str(error).split())}")
    else:
        return {} if content is None else content
    return None


def _entry(given: Given, name: str, value: Any, *, origin: str) -> None:
    table, old, flag = knobs(), old_flags(), flag_of(name)
    owned = passthrough.split(flag)
    if name == "custom":
        if isinstance(value, Mapping):
            given.custom.update({str(own): item for own, item in value.items()})
        else:
            given.failures.append(f"{origin}: custom: wanted `name: value` lines below it")
    elif name in OPPOSITES:
        if isinstance(value, bool):
            given.set(OPPOSITES[name], not value, origin)
        else:
            given.failures.append(f"{origin}: {name}: {value!r}: wanted true or false")
    elif name in table:
        try:
            given.set(name, from_yaml(table[name], value), origin)
        except WrongValue as wanted:
            given.failures.append(f"{origin}: {name}: {value!r}: wanted {wanted}")
            given.broken.add(name)
    elif flag in old:
        words = _words(value)
        if words is None:
            return
        _, fault = wanted_words(name, old[flag].takes, "a value", words, is_inline=False)
        if fault:
            given.failures.append(f"{origin}: {fault}")
        else:
            take_old(given, old[flag], words, f"{origin}, legacy name {name}")
    elif owned is not None:
        words = _words(value)
        if words is not None:
            take_foreign(given, *owned, words)
    else:
        known = (*table, *OPPOSITES, *(flag[2:].replace("-", "_") for flag in old))
        given.failures.append(
            f"{origin}: unknown name {name}{nearest(name, known)} "
            "(names of your own go below custom:)"
        )


def _words(value: Any) -> list[str] | None:
    """A YAML value as the words that would follow the flag; None: the flag is not said."""
    if value is None or value is False:
        return None
    if value is True:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
