"""Evaluation sets: a set's own entry, the file's defaults, `--eval-*`, the training flag."""

import pytest

FILE = """
eval:
  defaults:
    temperature: 0.5
    top_p: 9e-1
    max_response_len: 100
  datasets:
    - name: aime
      path: aime.jsonl
      temperature: 0
      rm_type: deepscaler
      stop: END
      metadata_overrides: {split: test}
    - name: gpqa
      path: gpqa.parquet@[:10]
      rm_type: gpqa
      n_samples_per_eval_prompt: 4
      apply_chat_template: true
      stop_token_ids: [1, 2]
"""


@pytest.fixture
def sets(tmp_path, read):
    def from_text(text, line=""):
        path = tmp_path / "eval.yaml"
        path.write_text(text)
        cfg, failures = read(f"--eval-config {path} {line}")
        return cfg.eval.eval_sets, failures

    return from_text


def test_nearer_settings_win(sets):
    (aime, gpqa), failures = sets(FILE, "--eval-top-k 3 --rollout-temperature 0.8 --eval-top-p 0.1")
    assert failures == ()
    assert (aime.temperature, gpqa.temperature) == (0.0, 0.5)
    assert (aime.top_p, aime.top_k, aime.max_response_len) == (0.9, 3, 100)
    assert (aime.n_samples_per_eval_prompt, gpqa.n_samples_per_eval_prompt) == (1, 4)
    assert (aime.rm_type, gpqa.rm_type) == ("deepscaler", "gpqa")
    assert (aime.stop, gpqa.stop_token_ids) == (("END",), (1, 2))
    assert (aime.apply_chat_template, gpqa.apply_chat_template) == (False, True)
    assert aime.metadata_overrides == {"split": "test"}
    assert gpqa.path == "gpqa.parquet@[:10]"


def test_sets_may_be_named_by_their_keys(sets):
    (a, b), failures = sets("eval: {datasets: {a: {path: x.jsonl, top_k: 7}, b: y.jsonl}}")
    assert failures == ()
    assert [(a.name, a.path, a.top_k), (b.name, b.path, b.top_k)] == [
        ("a", "x.jsonl", 7),
        ("b", "y.jsonl", -1),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "eval: {defaults: {temprature: 1}, datasets: []}",
            "eval.defaults: unknown name temprature",
        ),
        ("eval: {defaults: {temprature: 1}, datasets: []}", "did you mean temperature"),
        ("eval: {datasets: [{name: a, path: p, topp: 1}]}", "eval.datasets[0]: unknown name topp"),
        ("eval: {datasets: [{name: a}]}", "eval.datasets[0] has no path"),
        ("eval: {datasets: [{path: p}]}", "eval.datasets[0] has no name"),
        (
            "eval: {datasets: {a: {path: p, top_k: many}}}",
            "eval.datasets.a.top_k: 'many': wanted a whole number",
        ),
        ("eval: {datasets: {a: {path: p, top_k: true}}}", "wanted a whole number"),
        ("eval: {datasets: {a: {path: '${x}'}}}", "references to other entries"),
        ("eval: {datasets: {a: {path: p, repetition_penalty: 1.1}}}", "not yet"),
        ("eval: {datasets: [3]}", "eval.datasets[0]: wanted `path:`"),
        ("eval: {sets: []}", "wanted `eval:` with `datasets:`"),
        ("eval: {datasets: [], more: 1}", "eval.more: unknown"),
        ("eval: {datasets: {a: p}, defaults: 3}", "eval.defaults: wanted"),
        ("3", "wanted `eval:` with `datasets:`"),
        ("eval: {datasets: [{name: a, path: p}, {name: a, path: q}]}", "two evaluation sets"),
        ("eval: {datasets: {a: {path: p, rm_type: maths}}}", "evaluation set a: rm_type maths"),
        ("eval: {datasets: {a: {path: p, max_response_len: 0}}}", "max_response_len 0: wanted"),
    ],
)
def test_what_makes_no_sense_is_an_error(sets, text, wanted):
    _, failures = sets(text)
    assert any(wanted in failure for failure in failures)


def test_a_missing_file_is_one_error(read):
    _, failures = read("--eval-config none.yaml --eval-interval 2")
    assert [failure for failure in failures if "none.yaml cannot be read" in failure] == [*failures]


def test_a_single_path_is_aime_and_pairs_are_named(settings):
    one = settings("--eval-prompt-data p.jsonl").eval.eval_sets
    two = settings("--eval-prompt-data a p b q").eval.eval_sets
    assert [(s.name, s.path) for s in one] == [("aime", "p.jsonl")]
    assert [(s.name, s.path) for s in two] == [("a", "p"), ("b", "q")]
