"""Optimizer settings of one role: the policy's own, or the critic's."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from tandem.config.config import Config
from tandem.config.fields import WrongValue, from_yaml, knobs
from tandem.config.overlay import read_yaml
from tandem.config.sections.learning import OptimConfig
from tandem.errors import ConfigError

ROLES = ("actor", "critic")
IGNORED = ("num_nodes", "num_gpus_per_node")
OWN = frozenset(entry.name for entry in fields(OptimConfig))


def optim_of(cfg: Config, role: str) -> OptimConfig:
    """The optimizer settings of `role`, with what `--megatron-config-path` says of it.

    Raises ConfigError with everything that is wrong with the file.
    """
    optim = cfg.optim
    if role == "critic":
        if cfg.algo.critic_lr is not None:
            optim = replace(
                optim, lr=cfg.algo.critic_lr, min_lr=min(optim.min_lr, cfg.algo.critic_lr)
            )
        if cfg.algo.critic_lr_warmup_iters is not None:
            warmup = cfg.algo.critic_lr_warmup_iters
            optim = replace(optim, lr_warmup_iters=warmup, lr_warmup_fraction=None)
    path = cfg.algo.megatron_config_path
    if path is None:
        return optim
    failures: list[str] = []
    found = dict(_overrides(path, failures))
    if failures:
        raise ConfigError(failures)
    return replace(optim, **found.get(role, {}))


def _overrides(path: str, failures: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(role, settings) of each entry; what is wrong is added to `failures`."""
    flag, seen = f"--megatron-config-path {path}", set()
    content = read_yaml(flag, path, failures)
    entries = content.get("megatron") if isinstance(content, Mapping) else None
    if content is not None and not isinstance(entries, list):
        failures.append(f"{flag}: wanted `megatron:` and a list of entries with role, overrides")
    for entry in entries if isinstance(entries, list) else ():
        role = entry.get("role") if isinstance(entry, Mapping) else None
        if role not in ROLES or role in seen:
            failures.append(f"{flag}: an entry has role {role!r}; wanted actor and critic, once")
            continue
        seen.add(role)
        said = entry.get("overrides") or entry.get("args") or {}
        settings = {}
        for name, value in said.items():
            field = str(name).replace("-", "_")
            if field in IGNORED:
                continue
            if field not in OWN:
                failures.append(
                    f"{flag}: {role} overrides {name}; only optimizer settings can differ between "
                    f"roles: {', '.join(sorted(OWN))}"
                )
                continue
            try:
                settings[field] = from_yaml(knobs()[field], value)
            except WrongValue as wrong:
                failures.append(f"{flag}: {role} {name} {value}: wanted {wrong}")
        yield role, settings
