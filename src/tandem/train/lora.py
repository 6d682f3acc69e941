"""Low-rank adapters that are trained alone, merged into the weights that every forward pass reads.

A target matrix is W = base + (alpha / rank) B A (LoRA, arXiv:2106.09685), and W itself is what the
trainer and an engine of the same process run: their bits are the same, and no kernel knows of
adapters. The gradient of W is exact for A and B too: dA = s B' dW, dB = s dW A'. It is projected as
soon as it is there, so one matrix's gradient lives at a time. The price is the base beside W.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from tandem.checkpoint.folders import hidden_folder, publish_folder
from tandem.checkpoint.names import hugging_face_names, hugging_face_shapes, merge, split
from tandem.errors import ConfigError
from tandem.models.decoder import Decoder

BASE = "lora.base."
ADAPTER = "lora.adapter."
"""What the names of their tensors in a checkpoint begin with."""

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PEFT_PREFIX = "base_model.model."
WEIGHT = ".weight"


class Adapters:
    """Owns A, B and the frozen base of every target matrix of a decoder."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        seed: int,
        origin: str = "",
    ) -> None:
        """Freezes the decoder but for its targets, named as in Hugging Face.

        `origin` is the base model's folder, which a saved adapter names.
        """
        unknown = [name for name in targets if name not in TARGETS]
        if unknown:
            raise ConfigError(
                f"--lora-target-modules {' '.join(unknown)}: wanted some of {', '.join(TARGETS)}"
            )
        self._decoder, self._rank, self._alpha, self._origin = decoder, rank, alpha, origin
        self._targets = tuple(name for name in TARGETS if name in targets)
        self._base: dict[str, Tensor] = {}
        self._parts: dict[str, dict[str, tuple[Parameter, Parameter]]] = {}  # by our name
        sizes = hugging_face_shapes(decoder.shape)
        decoder.requires_grad_(False)
        for ours, parameter in decoder.named_parameters():
            pairs = {
                theirs: self._pair(theirs, sizes[theirs], seed, parameter.device)
                for theirs in hugging_face_names(decoder.shape, ours)
                if theirs.removesuffix(WEIGHT).rpartition(".")[2] in self._targets
                and theirs.endswith(WEIGHT)
            }
            if pairs:
                self._parts[ours] = pairs
                self._base[ours] = parameter.detach().clone()
                parameter.requires_grad_(True)
                parameter.register_post_accumulate_grad_hook(self._projecting(ours))

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        """What is trained: A and B of every target, fp32, by name."""
        return [
            (f"{theirs.removesuffix(WEIGHT)}.lora_{letter}{WEIGHT}", parameter)
            for pairs in self._parts.values()
            for theirs, pair in pairs.items()
            for letter, parameter in zip("AB", pair, strict=True)
        ]

    @torch.no_grad()
    def merge(self) -> None:
        """Writes base + s B A into the decoder's own storage."""
        weights = dict(self._decoder.named_parameters())
        shape, sizes = self._decoder.shape, hugging_face_shapes(self._decoder.shape)
        for ours, pairs in self._parts.items():
            deltas = []
            for theirs in hugging_face_names(shape, ours):
                if theirs in pairs:
                    a_RI, b_OR = pairs[theirs]
                    deltas.append(b_OR @ a_RI * self._scale)
                else:
                    deltas.append(torch.zeros(sizes[theirs], device=self._base[ours].device))
            weights[ours].copy_(self._base[ours].float() + merge(shape, ours, deltas))

    def tensors(self) -> dict[str, Tensor]:
        """Base, A and B, in place, by their names in a checkpoint."""
        named = {BASE + name: tensor for name, tensor in self._base.items()}
        return named | {ADAPTER + name: p.detach() for name, p in self.named_parameters()}

    def save(self, folder: Path) -> None:
        """Writes the adapters as a folder that `peft` reads, whole or not at all."""
        from safetensors.torch import save_file

        named = {
            PEFT_PREFIX + name: p.detach().cpu().contiguous() for name, p in self.named_parameters()
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = hidden_folder(folder)
        save_file(named, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self._origin,
            "r": self._rank,
            "lora_alpha": self._alpha,
            "lora_dropout": 0.0,
            "target_modules": list(self._targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
        }
        text = json.dumps(config, indent=2)
        (temporary / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        publish_folder(temporary, folder)

    @property
    def _scale(self) -> float:
        return self._alpha / self._rank

    def _pair(
        self, theirs: str, size: tuple[int, ...], seed: int, device: torch.device
    ) -> tuple[Parameter, Parameter]:
        """A drawn as PEFT does, uniform within 1 / sqrt(inputs), and B of zeros."""
        outputs, inputs = size
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{theirs}".encode()))
        a_RI = torch.empty(self._rank, inputs).uniform_(-1, 1, generator=generator)
        b_OR = torch.zeros(outputs, self._rank)
        return Parameter((a_RI / inputs**0.5).to(device)), Parameter(b_OR.to(device))

    def _projecting(self, ours: str) -> Callable[[Tensor], None]:
        """A hook that turns the gradient of a matrix into those of its adapters."""

        @torch.no_grad()
        def project(parameter: Tensor) -> None:
            assert parameter.grad is not None, f"the hook of {ours} ran without a gradient"
            for theirs, grad_OI in split(self._decoder.shape, ours, parameter.grad):
                if theirs in self._parts[ours]:
                    a_RI, b_OR = self._parts[ours][theirs]
                    grad = grad_OI.float()
                    _add(a_RI, b_OR.t() @ grad * self._scale)
                    _add(b_OR, grad @ a_RI.t() * self._scale)
            parameter.grad = None

        return project


def _add(parameter: Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
