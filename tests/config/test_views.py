"""A Config as hooks see it, as JSON, and as text to read."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.config import (
    Config,
    flags_table,
    flat,
    help_text,
    show,
    to_dict,
)
from tandem.config.fields import knobs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cfg(settings) -> Config:
    return settings(
        "--eval-prompt-data a p.jsonl --rollout-stop x --num-layers 4 --wandb-key s --use-wandb "
        "--sglang-cuda-graph-bs 1 2"
    )


def test_hooks_see_every_setting_by_its_name(cfg):
    args = flat(cfg)
    assert args.rollout_batch_size == 4
    assert args.hf_checkpoint == "model"
    assert args.rollout_stop == ["x"] and args.rollout_stop_token_ids is None
    assert args.rollout_sample_hook_path == ()
    assert all(name in args for name in knobs())


def test_hooks_see_the_dialects_derived_names(cfg):
    args = flat(cfg)
    assert args.grpo_std_normalization and args.rewards_normalization
    assert args.rollout_global_dataset and not args.use_critic
    assert args.num_layers == 4
    assert args.sglang_cuda_graph_bs == ["1", "2"]
    assert args.eval_datasets[0].name == "a"


def test_hooks_cannot_write(cfg):
    args = flat(cfg)
    with pytest.raises(AttributeError, match=r"read-only.*SimpleNamespace"):
        args.rollout_batch_size = 5
    with pytest.raises(AttributeError, match="read-only"):
        del args.rollout_batch_size
    vars(args)["rollout_batch_size"] = 5
    assert args.rollout_batch_size == 4


def test_an_unknown_name_is_an_attribute_error_with_the_nearest(cfg):
    with pytest.raises(AttributeError, match=r"no setting rollout_bach_size; .*rollout_batch_size"):
        _ = flat(cfg).rollout_bach_size
    assert not hasattr(flat(cfg), "nothing_like_it")


def test_the_flat_view_travels_and_iterates(cfg):
    args = flat(cfg)
    assert pickle.loads(pickle.dumps(args)) == args
    assert dict(args) == vars(args)


def test_a_config_is_json_without_secrets_and_survives_pickle(cfg):
    record = to_dict(cfg)
    assert json.loads(json.dumps(record)) == record
    assert record["observe"]["wandb_key"] is None
    assert record["eval"]["eval_sets"][0]["name"] == "a"
    assert pickle.loads(pickle.dumps(cfg)) == cfg


def test_show_prints_values_origins_remarks_and_refusals(launch):
    text, is_refused = show([*launch, "--rollout-num-gpus", "6"])
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert is_refused
    assert "rollout_batch_size 32 command line" in lines
    assert "eval_temperature 0.8 derived from rollout_temperature" in lines
    assert "seed 1234 default" in lines
    assert "--num-layers 36" in lines
    assert lines.index("Remarks:") < lines.index("Refused:")
    assert "on all 8 devices that train" in " ".join(lines[lines.index("Refused:") :])


def test_show_needs_no_files_and_keeps_secrets(small):
    text, is_refused = show(small("--wandb-key s3cret --use-wandb --bf16"))
    assert not is_refused
    assert "s3cret" not in text
    assert "legacy flag --bf16" in text


def test_help_names_every_flag_with_its_default():
    text = help_text()
    words = set(text.split())
    assert {knob.flag for knob in knobs().values()} <= words
    assert "[0.2]" in text and max(map(len, text.splitlines())) <= 130


def test_every_setting_has_help():
    cells = [line.split(" | ") for line in flags_table().splitlines() if line.startswith("| `--")]
    assert all(cell[-1].strip(" |") for cell in cells)


def test_the_page_of_flags_is_current():
    page = (ROOT / "docs" / "flags.md").read_text()
    assert page == flags_table() + "\n", "write it again: tandem flags > docs/flags.md"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from tandem.config import help_text, show; help_text(); show([]);"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src"
    )
    heavy = {"torch", "numpy", "transformers", "yaml", "aiohttp", "rich", "ray"}
    assert not heavy & set(done.stdout.split())


def test_the_origin_of_every_changed_value_is_known(cfg):
    changed = {
        name
        for name, knob in knobs().items()
        if getattr(getattr(cfg, knob.section), name) != knob.default
    }
    assert changed <= set(cfg.origins)
