"""The folder that the examples make from nothing is one that everything else can use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUESTION = [{"role": "user", "content": "Sort 583219"}]


def run_example(*words, python=(sys.executable,)):
    done = subprocess.run(
        [*python, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory, python_with):
    """A folder with the quickstart's data and model."""
    python = python_with("torch", "transformers.models.qwen3.modeling_qwen3")
    folder = tmp_path_factory.mktemp("quickstart")
    run_example("examples/quickstart/problems.py", "--out", folder / "data", "--seed", "3")
    texts = folder / "data" / "warmup.jsonl"
    make = "examples/small_model.py", "--texts", texts, "--out", folder / "base"
    run_example(*make, python=python)
    return folder


@pytest.fixture(scope="module")
def tokenizer(quickstart):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(quickstart / "base")


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_folder_holds_what_a_published_model_holds(quickstart):
    names = {path.name for path in (quickstart / "base").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= names


def test_config_and_tokenizer_agree(quickstart, tokenizer):
    config = json.loads((quickstart / "base" / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert config["vocab_size"] == len(tokenizer)
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert config["pad_token_id"] == tokenizer.pad_token_id
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_a_conversation_survives_template_and_tokenizer(quickstart, tokenizer):
    for row in rows_of(quickstart / "data" / "warmup.jsonl")[:50]:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(tokens) == text


def test_any_text_survives_the_tokenizer(tokenizer):
    text = "never seen: \u00e9\u4e2d\U0001f600 \\frac{1}{2}\n\n\t 007"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_prompt_ends_where_the_answer_begins(tokenizer):
    asked = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    told = [*QUESTION, {"role": "assistant", "content": "\\boxed{123589}"}]
    assert tokenizer.apply_chat_template(told, tokenize=False) == (
        asked + "\\boxed{123589}<|im_end|>\n"
    )


def test_an_answer_fits_the_response_length_of_the_quickstart(tokenizer):
    tokens = tokenizer("\\boxed{123589}<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(tokens) <= 16
    assert tokens[-1] == tokenizer.eos_token_id


def test_the_same_seed_makes_the_same_bytes(quickstart):
    texts, again = quickstart / "data" / "warmup.jsonl", quickstart / "again"
    # not forked as the other was: strings have other hashes in it
    run_example("examples/small_model.py", "--texts", texts, "--out", again)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / name).read_bytes() == (quickstart / "base" / name).read_bytes()
