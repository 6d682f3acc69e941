"""Evaluation sets of a file in a run: each with functions, metadata and sampling of its own."""

import json
from contextlib import ExitStack

import pytest

from tandem.config import load_config
from tandem.errors import HookError
from tandem.loop import train
from tandem.rollout import EventLoop
from tandem.runtime.local import build

FILE = """
eval:
  defaults:
    input_key: prompt
    label_key: label
    apply_chat_template: true
    max_response_len: 6
  datasets:
    - name: hard
      path: {folder}/heldout.jsonl@[:3]
      custom_generate_function_path: spoiled.generate_again
      custom_rm_path: spoiled.judge_split
      metadata_overrides: {{split: hard}}
      n_samples_per_eval_prompt: 2
    - name: easy
      path: {folder}/heldout.jsonl
      custom_rm_path: spoiled.judge_split
      metadata_overrides: {{split: easy}}
      temperature: 0
    - name: plain
      path: {folder}/heldout.jsonl@[5:]
      rm_type: random
      max_response_len: 3
"""


@pytest.fixture
def drive(tiny, tmp_path, users_functions):
    """Evaluates with this file before and after one rollout; gives the run folder."""

    def run(text):
        path = tmp_path / "eval.yaml"
        path.write_text(text.format(folder=tiny.folder))
        argv = tiny.argv(tmp_path / "run", "--eval-config", str(path), num_rollout=1)
        place = argv.index("--eval-prompt-data")
        argv = [*argv[:place], *argv[place + 3 :]]
        with ExitStack() as stack:
            events = EventLoop()
            stack.callback(events.close)
            stages, cfg = build(load_config(argv), events, stack)
            train(cfg, stages)
        return tmp_path / "run"

    return run


def test_each_set_has_its_own_generate_reward_metadata_and_sampling(drive):
    run = drive(FILE)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    rows = [row for row in rows if "eval/hard" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["eval/hard"] == 1.75 and row["eval/easy"] == 0.25
        assert 0 <= row["eval/plain"] <= 1
        assert row["eval/plain/response_len/max"] <= 3
    lines = [json.loads(line) for line in (run / "samples.jsonl").open()]
    by_set = {name: [one for one in lines if one["set"] == name] for name in ("hard", "easy")}
    assert all(" so " in one["response"] for one in by_set["hard"])
    assert not any(" so " in one["response"] for one in by_set["easy"])


def test_a_function_of_a_set_that_is_not_there_is_said_at_the_start(drive):
    with pytest.raises(HookError, match=r"spoiled has no function 'absent'"):
        drive(FILE.replace("spoiled.generate_again", "spoiled.absent"))
    with pytest.raises(HookError, match=r"--custom-rm-path spoiled\.missing"):
        drive(FILE.replace("spoiled.judge_split", "spoiled.missing"))
