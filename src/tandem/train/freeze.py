"""Parameters that do not learn, by regular expressions."""

import re
from collections.abc import Sequence

from tandem.checkpoint.names import hugging_face_names
from tandem.config import OptimConfig
from tandem.errors import ConfigError
from tandem.models.decoder import Decoder


def freeze(parts: Sequence[Decoder], cfg: OptimConfig) -> None:
    """Freezes every parameter that the settings name, or all that they do not name.

    An expression is searched for in a parameter's names: ours, and those of Hugging Face. Raises
    ConfigError when nothing is left to train on this process.
    """
    patterns = cfg.only_train_params_name_list or cfg.freeze_params_name_list
    if not patterns:
        return
    trains_named = bool(cfg.only_train_params_name_list)
    for part in parts:
        for name, parameter in part.named_parameters():
            names = (name, *hugging_face_names(part.shape, name))
            is_named = any(re.search(pattern, one) for pattern in patterns for one in names)
            parameter.requires_grad_(is_named == trains_named)
    if not any(p.requires_grad for part in parts for p in part.parameters()):
        flag = "--only-train-params-name-list" if trains_named else "--freeze-params-name-list"
        raise ConfigError(
            f"{flag} {' '.join(patterns)} leaves a process nothing to train; wanted are regular "
            f"expressions of names such as {', '.join(names[:2])}, and with "
            "--pipeline-model-parallel-size some that every stage has"
        )
