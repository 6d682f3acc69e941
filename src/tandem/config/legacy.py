"""Old spellings, slime's and Megatron's: mapped, checked, without effect, or refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tandem.config import not_yet
from tandem.config.shapes import SHAPES


@dataclass(frozen=True, slots=True)
class Mapped:
    """It sets a field: to `value`, or to the word that follows the flag."""

    field: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Expected:
    """It says something about the checkpoint, which is checked (`config.shapes`)."""

    kind: str  # of its value: "switch", "int", "float" or "str"


@dataclass(frozen=True, slots=True)
class NoEffect:
    """It changes nothing, because ...; said once in the log.

    With `only`, that holds for these values; any other is refused.
    """

    because: str
    only: tuple[str, ...] = ()
    hint: str = ""  # what to do about another value; else to set the first of `only`

    @property
    def otherwise(self) -> str:
        """Why another value is refused."""
        return f"{self.because}; {self.hint or f'set {self.only[0]}'}"


@dataclass(frozen=True, slots=True)
class Refused:
    """It cannot be honoured, because ..."""

    because: str


Fate = Mapped | Expected | NoEffect | Refused


@dataclass(frozen=True, slots=True)
class OldFlag:
    """One old spelling, how many words follow it, and its fate."""

    flag: str
    takes: str  # "nothing", "one" or "many"
    fate: Fate


@cache
def old_flags() -> Mapping[str, OldFlag]:
    """Every old spelling by flag."""
    table: dict[str, OldFlag] = {}
    for shape in SHAPES:
        takes = "nothing" if shape.kind == "switch" else "one"
        table[shape.flag] = OldFlag(shape.flag, takes, Expected(shape.kind))
    coming = ((Refused(not_yet.said(what)), flags) for what, flags in not_yet.OLD_FLAGS)
    for fate, flags in (*MEGATRON, *SLIME, *coming):
        for word in flags.split():
            flag = word.rstrip("=.")
            takes = "one" if word.endswith("=") else "many" if word.endswith("...") else "nothing"
            assert flag not in table, f"two fates for {flag}"
            table[flag] = OldFlag(flag, takes, fate)
    return table


# In these tables one word follows a flag that is written with `=`, any number one with `...`.

MEGATRON: tuple[tuple[Fate, str], ...] = (
    # --- another name of a field
    (Mapped("dtype", "bf16"), "--bf16"),
    (Mapped("recompute_granularity", "selective"), "--recompute-activations"),
    # --- always so here
    (NoEffect("the decoder has no dropout", ("0",)), "--attention-dropout= --hidden-dropout="),
    (
        NoEffect("gradients are always summed and attention always normalised in fp32"),
        "--accumulate-allreduce-grads-in-fp32 --attention-softmax-in-fp32",
    ),
    (NoEffect("positions are always rotary", ("rope",)), "--position-embedding-type="),
    (NoEffect("positions are always rotary"), "--use-rotary-position-embeddings"),
    (NoEffect("the checkpoint's number of key heads decides"), "--group-query-attention"),
    (
        NoEffect("it is taken from the checkpoint"),
        "--max-position-embeddings= --seq-length= --encoder-seq-length= --init-method-std= "
        "--tokenizer-model=",
    ),
    (
        NoEffect("vocabularies are not padded"),
        "--make-vocab-size-divisible-by= --padded-vocab-size=",
    ),
    (
        NoEffect("the tokenizer is always the checkpoint's", ("HuggingFaceTokenizer",)),
        "--tokenizer-type=",
    ),
    (
        NoEffect(
            "torch_dist is the only format",
            ("torch_dist",),
            "tandem convert reads and writes others",
        ),
        "--ckpt-format= --dist-ckpt-format=",
    ),
    # --- how Megatron runs, not what it computes
    (
        NoEffect("which kernels are fused is chosen by what is installed"),
        "--no-gradient-accumulation-fusion --no-rope-fusion --no-masked-softmax-fusion "
        "--no-bias-gelu-fusion --no-bias-swiglu-fusion --no-bias-dropout-fusion "
        "--no-persist-layer-norm --cross-entropy-loss-fusion --use-flash-attn",
    ),
    (
        NoEffect("there is one implementation of the decoder"),
        "--use-mcore-models --use-cpu-initialization --transformer-impl=",
    ),
    (
        NoEffect("sharding and overlap of communication are chosen by the layout"),
        "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather "
        "--tp-comm-overlap --use-dist-ckpt --ckpt-fully-parallel-save --ckpt-fully-parallel-load",
    ),
    (
        NoEffect("memory is collected by Python's and torch's own rules"),
        "--manual-gc --manual-gc-interval= --empty-unused-memory-level=",
    ),
    (
        NoEffect("every rollout is reported and evaluation has its own flags"),
        "--log-interval= --eval-iters=",
    ),
    # --- experts
    (
        NoEffect("rows of experts always meet in one grouped product, where there is one"),
        "--moe-grouped-gemm --moe-permute-fusion --moe-enable-deepep",
    ),
    (
        NoEffect(
            "tokens always go straight to where their experts are",
            ("alltoall", "allgather", "flex"),
        ),
        "--moe-token-dispatcher-type=",
    ),
    (NoEffect("routers always compute in fp32", ("fp32",)), "--moe-router-dtype="),
    (NoEffect("no token is ever dropped"), "--moe-token-drop-policy="),
    (
        NoEffect("the biases of routers stay as the checkpoint has them", ("0", "0.0", "0.")),
        "--moe-router-bias-update-rate=",
    ),
    # --- never
    (Refused("fp16 overflows in long rollouts; use --dtype bf16"), "--fp16"),
    (
        Refused("optimizer steps follow from --num-rollout and --num-steps-per-rollout"),
        "--train-iters=",
    ),
    (
        Refused("layers come from the checkpoint's model_type, not from a Megatron module spec"),
        "--spec...",
    ),
)
"""Megatron's flags that launch scripts carry and that are no fields here."""

SLIME: tuple[tuple[Fate, str], ...] = (
    (
        NoEffect("there is one trainer, and it takes Megatron's flags", ("megatron",)),
        "--train-backend=",
    ),
    (
        NoEffect("the log-prob head always works in chunks and computes them again in backward"),
        "--recompute-loss-function",
    ),
    (NoEffect("engines are reached directly (slime does not read it either)"), "--http-proxy="),
    (
        NoEffect("requests to the embedded engine do not travel over HTTP"),
        "--use-distributed-post",
    ),
    (
        Refused(
            "it makes a Megatron model, and none runs here; the model is that of --hf-checkpoint"
        ),
        "--custom-model-provider-path=",
    ),
    (
        Refused(
            "it is given Megatron's model, optimizer or process groups, and none runs here; "
            "--custom-advantage-function-path, --custom-loss-function-path and "
            "--rollout-data-postprocess-path reach into training"
        ),
        "--custom-megatron-init-path= --custom-megatron-before-log-prob-hook-path= "
        "--custom-megatron-before-train-step-hook-path=",
    ),
    (
        Refused(
            "this belongs to a plug-in of slime's examples; bring your own rollout with "
            "--rollout-function-path"
        ),
        "--rollout-buffer-url= --fetch-trajectory-retry-times= --min-batch-collection-ratio= "
        "--rollout-task-type=",
    ),
)
"""slime's flags that are no fields here."""
