import pytest
import torch

from tandem.config import OptimConfig
from tandem.errors import ConfigError
from tandem.train.freeze import freeze


def trained(decoder):
    return {name for name, p in decoder.named_parameters() if p.requires_grad}


ONLY, FREEZE = "only_train_params_name_list", "freeze_params_name_list"


@pytest.mark.parametrize(
    ("settings", "is_trained"),
    [
        ({ONLY: ("norm",)}, lambda name: "norm" in name),
        ({FREEZE: ("norm", "embed")}, lambda name: "norm" not in name and "embed" not in name),
        # Hugging Face's name of a tensor that is a part of one of ours
        ({ONLY: (r"layers\.1\.self_attn\.k_proj",)}, lambda name: name == "layers.1.qkv.weight"),
        ({}, lambda name: True),
    ],
)
def test_parameters_are_frozen_by_either_name(make_decoder, settings, is_trained):
    decoder = make_decoder()
    freeze([decoder], OptimConfig(**settings))
    assert trained(decoder) == {name for name, _ in decoder.named_parameters() if is_trained(name)}


def test_an_expression_that_leaves_nothing_to_train_is_refused(make_decoder):
    with pytest.raises(
        ConfigError, match=r"--only-train-params-name-list nowhere leaves a process"
    ):
        freeze([make_decoder()], OptimConfig(only_train_params_name_list=("nowhere",)))


def test_what_is_frozen_stays_and_all_else_moves(make_trainer, make_decoder, make_groups, learn):
    decoder = make_decoder(dtype=torch.bfloat16)
    optim = {"freeze_params_name_list": ("down",), "lr": 1e-1}
    freeze([decoder], OptimConfig(**optim))
    before = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    learn(make_trainer(decoder=decoder, optim=optim), make_groups())
    stayed = {name for name, p in decoder.named_parameters() if torch.equal(p, before[name])}
    assert stayed == {name for name in before if "down" in name}
