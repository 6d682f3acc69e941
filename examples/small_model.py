"""Makes a Hugging Face folder from nothing: a tokenizer trained on texts, random Qwen3 weights.

    python examples/small_model.py --texts quickstart/data/warmup.jsonl --out quickstart/base

The folder holds what any published model's folder holds, so everything downstream treats it as one:
config.json, generation_config.json, model.safetensors, tokenizer files and a chat template.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# ChatML, as Qwen's models speak it, without tools and without thinking.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
# Where tokens may not reach across, as in Qwen's tokenizers: a digit is a token of its own, and a
# word may carry one sign or space before it (" the", "\\boxed").
SPLIT = r"\p{N}|'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ROLES = ("system", "user", "assistant")


def main() -> None:
    """Writes the folder and says what is in it."""
    options = parse_options()
    tokenizer = train_tokenizer(list(read_texts(options.texts)), options.vocab_size)
    tokenizer.save_pretrained(options.out)
    num_parameters = save_random_model(options, tokenizer)
    kind = "weights to be drawn" if options.no_weights else "random weights"
    print(
        f"{options.out}: {num_parameters:,} {kind}, {len(tokenizer)} tokens, "
        f"{options.num_layers} layers of width {options.hidden_size}"
    )


def parse_options() -> argparse.Namespace:
    """The command line; the defaults are the quickstart's model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="JSONL of messages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--vocab-size", type=int, default=320)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--ffn-hidden-size", type=int, default=384)
    parser.add_argument("--num-layers", type=int, default=2)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--num-key-heads", type=int, default=2)
    parser.add_argument("--head-size", type=int, help="width / heads when unset")
    parser.add_argument("--padded-vocab-size", type=int, help="of the model; the tokenizer's")
    parser.add_argument("--rope-theta", type=float, default=10_000.0)
    parser.add_argument("--max-positions", type=int, default=4096)
    parser.add_argument("--no-weights", action="store_true", help="for runs with --init random")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def read_texts(paths: Sequence[Path]) -> Iterator[str]:
    """Every message's content, in order; a row keeps its messages under `prompt` or `messages`."""
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                for message in row.get("messages") or row["prompt"]:
                    yield message["content"]


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer (any text survives a round trip) with ChatML's special tokens."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=train_pairs(texts, vocab_size),
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def train_pairs(texts: Sequence[str], vocab_size: int) -> "Tokenizer":
    """Byte pairs learned from the texts and the names of the roles."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # A role stands in every conversation, so each is worth a token however few texts there are.
    tokenizer.train_from_iterator([*texts, *(ROLES * len(texts))], trainer)
    return tokenizer


def save_random_model(options: argparse.Namespace, tokenizer: "PreTrainedTokenizerFast") -> int:
    """Writes config and weights drawn by transformers' own initialisation; gives their number.

    Without weights the folder is for whoever draws or has them elsewhere.
    """
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    special: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=options.padded_vocab_size or len(tokenizer),
        hidden_size=options.hidden_size,
        intermediate_size=options.ffn_hidden_size,
        num_hidden_layers=options.num_layers,
        num_attention_heads=options.num_heads,
        num_key_value_heads=options.num_key_heads,
        head_dim=options.head_size or options.hidden_size // options.num_heads,
        rope_theta=options.rope_theta,
        max_position_embeddings=options.max_positions,
        tie_word_embeddings=True,
        dtype=torch.float32,
        **special,
    )
    generation = GenerationConfig(**special)
    torch.manual_seed(options.seed)
    with torch.device("meta" if options.no_weights else "cpu"):
        model = Qwen3ForCausalLM(config)
    model.generation_config = generation
    for part in (config, generation) if options.no_weights else (model,):
        part.save_pretrained(options.out)
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
