import pytest

from tandem.config.roles import optim_of
from tandem.errors import ConfigError

PPO = "--advantage-estimator ppo --lr 1e-6 --lr-warmup-iters 3"


def test_the_critic_has_the_policys_settings_but_for_its_own(read):
    cfg, _ = read(f"{PPO} --critic-lr 1e-5 --critic-lr-warmup-iters 7")
    assert (optim_of(cfg, "actor").lr, optim_of(cfg, "critic").lr) == (1e-6, 1e-5)
    assert optim_of(cfg, "actor").lr_warmup_iters == 3
    assert optim_of(cfg, "critic").lr_warmup_iters == 7
    assert optim_of(read(PPO)[0], "critic") == optim_of(read(PPO)[0], "actor")


def test_a_file_of_roles_wins(read, tmp_path):
    path = tmp_path / "roles.yaml"
    path.write_text(
        "megatron:\n"
        "- {name: a, role: actor, overrides: {lr: 2e-6, num_nodes: 3}}\n"
        '- {name: c, role: critic, args: {lr: "3e-5", weight-decay: 0}}\n'
    )
    cfg, _ = read(f"{PPO} --critic-lr 1e-5 --megatron-config-path {path}")
    assert optim_of(cfg, "actor").lr == 2e-6
    assert (optim_of(cfg, "critic").lr, optim_of(cfg, "critic").weight_decay) == (3e-5, 0.0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("megatron: [{role: actor, overrides: {num_layers: 3}}]", "actor overrides num_layers"),
        ("megatron: [{role: judge}]", "role 'judge'; wanted actor and critic"),
        ("megatron: [{role: actor}, {role: actor}]", "wanted actor and critic, once"),
        ("megatron: [{role: actor, overrides: {lr: fast}}]", "lr fast: wanted a number"),
        ("sglang: []", "wanted `megatron:`"),
        ("{", "is no YAML"),
    ],
)
def test_what_is_wrong_with_it_is_said(read, tmp_path, text, complaint):
    path = tmp_path / "roles.yaml"
    path.write_text(text)
    cfg, _ = read(f"{PPO} --megatron-config-path {path}")
    with pytest.raises(ConfigError, match=complaint):
        optim_of(cfg, "actor")
