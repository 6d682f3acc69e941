"""Megatron's flags that launch scripts carry and that are no fields here."""

from tandem.config.legacy.fates import Mapped, NoEffect, OldFlag, Refused, rows

FLAGS: tuple[OldFlag, ...] = (
    # --- another name of a field
    OldFlag("--bf16", "nothing", Mapped("dtype", "bf16")),
    OldFlag("--recompute-activations", "nothing", Mapped("recompute_granularity", "selective")),
    # --- always so here
    *rows(
        NoEffect("the decoder has no dropout", only=("0",), otherwise="there is no dropout; set 0"),
        takes="one",
        flags="--attention-dropout --hidden-dropout",
    ),
    *rows(
        NoEffect("gradients are always summed and attention always normalised in fp32"),
        takes="nothing",
        flags="--accumulate-allreduce-grads-in-fp32 --attention-softmax-in-fp32",
    ),
    *rows(
        NoEffect(
            "positions are always rotary",
            only=("rope",),
            otherwise="only rotary positions (rope) are known",
        ),
        takes="one",
        flags="--position-embedding-type",
    ),
    *rows(
        NoEffect("positions are always rotary"),
        takes="nothing",
        flags="--use-rotary-position-embeddings",
    ),
    *rows(
        NoEffect("the checkpoint's number of key heads decides"),
        takes="nothing",
        flags="--group-query-attention",
    ),
    *rows(
        NoEffect("it is taken from the checkpoint"),
        takes="one",
        flags="--max-position-embeddings --seq-length --encoder-seq-length --init-method-std "
        "--tokenizer-model",
    ),
    *rows(
        NoEffect("vocabularies are not padded"),
        takes="one",
        flags="--make-vocab-size-divisible-by --padded-vocab-size",
    ),
    *rows(
        NoEffect(
            "the tokenizer is always the checkpoint's",
            only=("HuggingFaceTokenizer",),
            otherwise="the tokenizer is always the checkpoint's (HuggingFaceTokenizer)",
        ),
        takes="one",
        flags="--tokenizer-type",
    ),
    *rows(
        NoEffect(
            "torch_dist is the only format",
            only=("torch_dist",),
            otherwise="torch_dist is the only format; tandem convert reads and writes others",
        ),
        takes="one",
        flags="--ckpt-format --dist-ckpt-format",
    ),
    # --- how Megatron runs, not what it computes
    *rows(
        NoEffect("which kernels are fused is chosen by what is installed"),
        takes="nothing",
        flags="--no-gradient-accumulation-fusion --no-rope-fusion --no-masked-softmax-fusion "
        "--no-bias-gelu-fusion --no-bias-swiglu-fusion --no-bias-dropout-fusion "
        "--no-persist-layer-norm --cross-entropy-loss-fusion --use-flash-attn",
    ),
    *rows(
        NoEffect("there is one implementation of the decoder"),
        takes="nothing",
        flags="--use-mcore-models --use-cpu-initialization",
    ),
    *rows(
        NoEffect("there is one implementation of the decoder"),
        takes="one",
        flags="--transformer-impl",
    ),
    *rows(
        NoEffect("sharding and overlap of communication are chosen by the layout"),
        takes="nothing",
        flags="--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather "
        "--tp-comm-overlap --use-dist-ckpt --ckpt-fully-parallel-save --ckpt-fully-parallel-load",
    ),
    *rows(
        NoEffect("memory is collected by Python's and torch's own rules"),
        takes="nothing",
        flags="--manual-gc",
    ),
    *rows(
        NoEffect("memory is collected by Python's and torch's own rules"),
        takes="one",
        flags="--manual-gc-interval --empty-unused-memory-level",
    ),
    *rows(
        NoEffect("every rollout is reported and evaluation has its own flags"),
        takes="one",
        flags="--log-interval --eval-iters",
    ),
    # --- experts
    *rows(
        NoEffect("rows of experts always meet in one grouped product, where there is one"),
        takes="nothing",
        flags="--moe-grouped-gemm --moe-permute-fusion --moe-enable-deepep",
    ),
    *rows(
        NoEffect(
            "tokens always go straight to where their experts are",
            only=("alltoall", "allgather", "flex"),
            otherwise="tokens always go straight to where their experts are (alltoall)",
        ),
        takes="one",
        flags="--moe-token-dispatcher-type",
    ),
    *rows(
        NoEffect(
            "routers always compute in fp32",
            only=("fp32",),
            otherwise="routers always compute in fp32; set that",
        ),
        takes="one",
        flags="--moe-router-dtype",
    ),
    *rows(NoEffect("no token is ever dropped"), takes="one", flags="--moe-token-drop-policy"),
    *rows(
        NoEffect(
            "the biases of routers stay as the checkpoint has them",
            only=("0", "0.0", "0."),
            otherwise="the biases of routers stay as the checkpoint has them; set 0",
        ),
        takes="one",
        flags="--moe-router-bias-update-rate",
    ),
    # --- never
    OldFlag("--fp16", "nothing", Refused("fp16 overflows in long rollouts; use --dtype bf16")),
    OldFlag(
        "--train-iters",
        "one",
        Refused("optimizer steps follow from --num-rollout and --num-steps-per-rollout"),
    ),
    OldFlag(
        "--spec",
        "many",
        Refused("layers come from the checkpoint's model_type, not from a Megatron module spec"),
    ),
)
