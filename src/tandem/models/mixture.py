"""The sizes and rules of a mixture of experts, read from a Hugging Face config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What configs call the number of experts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """The feed-forward block of some layers as E experts, of which each token takes a few."""

    num_experts: int  # E
    per_token: int  # k, the experts that one token takes
    ffn: int  # F of one expert
    layers: tuple[int, ...]  # which have experts; the others are dense
    normalises: bool  # the weights of a token's experts are made to sum to 1
    shared_ffn: int = 0  # F of the expert that every token takes; 0: there is none
    has_shared_gate: bool = False  # a sigmoid of the token weighs the shared expert

    def ffn_per_token(self) -> int:
        """F that one token passes through: what its cost depends on."""
        return self.ffn * self.per_token + self.shared_ffn

    def num_parameters(self, width: int) -> int:
        """Numbers that the block of one layer learns."""
        each = 3 * width * self.ffn
        shared = 3 * width * self.shared_ffn + width * self.has_shared_gate
        return self.num_experts * (each + width) + shared


def mixture_of(config: Mapping[str, Any]) -> Mixture:
    """The experts that a config of the Qwen families describes; its keys must be there."""
    dense = set(config.get("mlp_only_layers") or ())
    step = config.get("decoder_sparse_step") or 1
    shared = config.get("shared_expert_intermediate_size") or 0
    return Mixture(
        num_experts=num_experts(config) or 0,
        per_token=config["num_experts_per_tok"],
        ffn=config["moe_intermediate_size"],
        layers=tuple(
            layer
            for layer in range(config["num_hidden_layers"])
            if layer not in dense and (layer + 1) % step == 0
        ),
        normalises=bool(config.get("norm_topk_prob", False)),
        shared_ffn=shared,
        has_shared_gate=shared > 0,
    )


def missing(config: Mapping[str, Any]) -> list[str]:
    """The keys that a mixture needs and the config lacks."""
    keys = ("num_experts_per_tok", "moe_intermediate_size")
    lost = [key for key in keys if config.get(key) is None]
    return lost if num_experts(config) is not None else [COUNTS[0], *lost]


def refusals(config: Mapping[str, Any]) -> list[str]:
    """One sentence for each size that no mixture can have."""
    count, taken = num_experts(config) or 0, config["num_experts_per_tok"]
    if 0 < taken <= count:
        return []
    return [f"num_experts_per_tok = {taken}: there are {count} experts to choose from"]


def num_experts(config: Mapping[str, Any]) -> int | None:
    """How many experts the config says that there are; None if it does not say."""
    return next((config[key] for key in COUNTS if config.get(key) is not None), None)
