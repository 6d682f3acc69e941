"""The standard load W1 and what it costs at the very least; shared by the GPU benchmarks.

W1 is one step of GRPO on a model of Qwen3-4B's shape with random weights: 32 prompts x 8 samples,
256 prompt and 1,024 response tokens, no stop token, one optimizer step.
"""

import json
import platform
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tandem.models.shape import Shape, num_parameters
from tandem.types import Ending, Group, Prompt, Sample

RESULTS = Path(__file__).parent / "results"

QWEN3_4B = Shape(
    family="qwen3",
    num_layers=36,
    width=2560,
    ffn=9728,
    num_heads=32,
    num_key_heads=8,
    head_size=128,
    vocab=151936,
    eps=1e-6,
    rope_theta=1e6,
    tied=True,
    qkv_bias=False,
    qk_norm=True,
    max_positions=40960,
)
TINY = replace(
    QWEN3_4B, num_layers=2, width=64, ffn=128, num_heads=4, num_key_heads=2, head_size=16, vocab=512
)
"""The same load can be walked through on a CPU with this shape, to test a script."""

# measured on an H200 (docs/results.md): bf16 matmul, and copies counting bytes read and written
MATMUL_FLOPS = 775e12
COPY_BYTES = 4.3e12
DATASHEET_FLOPS = 989e12


@dataclass(frozen=True)
class Load:
    """How much is sampled and learned."""

    num_prompts: int = 32
    num_samples: int = 8
    prompt_tokens: int = 256
    response_tokens: int = 1024

    @property
    def num_sequences(self) -> int:
        return self.num_prompts * self.num_samples

    @property
    def num_output_tokens(self) -> int:
        return self.num_sequences * self.response_tokens

    @property
    def num_tokens(self) -> int:
        return self.num_sequences * (self.prompt_tokens + self.response_tokens)


def model_flops(shape: Shape, load: Load) -> float:
    """Floating-point operations of forward and backward, counting what the model needs only.

    6 per weight of every matrix and token (the head on trained tokens only), and causal attention:
    forward 2 * L * N * H * T^2 a sequence, backward 2.5 times that.
    """
    length = load.prompt_tokens + load.response_tokens
    matrices = num_parameters(shape) - shape.vocab * shape.width * (1 if shape.tied else 2)
    dense = 6 * matrices * load.num_tokens
    head = 6 * shape.vocab * shape.width * load.num_output_tokens
    attention = 3.5 * 2 * shape.num_layers * shape.num_heads * shape.head_size * length**2
    return dense + head + attention * load.num_sequences


def sampling_floor_s(shape: Shape, load: Load, *, shares_prompt: bool = False) -> float:
    """Seconds to read all weights, and the keys and values of every sequence, once per token.

    With `shares_prompt` a group's prompt is read once per step for all its samples.
    """
    token_bytes = 2 * shape.num_layers * 2 * shape.num_key_heads * shape.head_size
    weights = 2 * num_parameters(shape) * load.response_tokens
    own = sum(range(load.response_tokens)) * load.num_sequences * token_bytes
    readers = load.num_prompts if shares_prompt else load.num_sequences
    prompt = load.response_tokens * load.prompt_tokens * readers * token_bytes
    return (weights + own + prompt) / COPY_BYTES


def training_floor_s(shape: Shape, load: Load) -> float:
    """Seconds of the model's operations at the matmul rate that was measured."""
    return model_flops(shape, load) / MATMUL_FLOPS


def random_groups(shape: Shape, load: Load, seed: int = 0) -> tuple[Group, ...]:
    """Groups as sampling would give them, with random tokens and rewards."""
    rng = np.random.default_rng(seed)
    groups = []
    for index in range(load.num_prompts):
        prompt_T = rng.integers(0, shape.vocab, load.prompt_tokens).astype(np.int32)
        samples = tuple(
            random_sample(shape, load, prompt_T, index * load.num_samples + place, place, rng)
            for place in range(load.num_samples)
        )
        prompt = Prompt(index=index, tokens_T=prompt_T, text="", content="")
        groups.append(Group(prompt=prompt, samples=samples))
    return tuple(groups)


def random_sample(
    shape: Shape, load: Load, prompt_T: np.ndarray, index: int, place: int, rng: Any
) -> Sample:
    response_T = rng.integers(0, shape.vocab, load.response_tokens).astype(np.int32)
    length = load.prompt_tokens + load.response_tokens
    sampled_T = np.arange(length) >= load.prompt_tokens
    return Sample(
        index=index,
        position=place,
        tokens_T=np.concatenate([prompt_T, response_T]),
        sampled_T=sampled_T,
        logprobs_T=np.where(sampled_T, -np.log(shape.vocab), 0).astype(np.float32),
        version_T=np.where(sampled_T, 0, -1).astype(np.int32),
        ending=Ending.LENGTH,
        text="",
        reward=float(rng.random()),
    )


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(name: str, rows: list[dict[str, Any]], out: Path | None = None, **facts: Any) -> None:
    """Prints a table of the rows and one JSON line, which is kept in `out` (a folder) too."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in (columns, *cells):
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
    line = json.dumps({"benchmark": name, **facts, "rows": rows, **machine()})
    print(line, flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / f"{name}.json").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def machine() -> dict[str, Any]:
    """Hardware, versions and the commit."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=RESULTS.parent, check=False)
    has_cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if has_cuda else platform.processor() or "cpu",
        "devices": torch.cuda.device_count() if has_cuda else 0,
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }


def _cell(value: Any) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else str(value)
