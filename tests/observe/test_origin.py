import json

import pytest

from tandem import __version__
from tandem.config import Config, ObserveConfig, Passthrough
from tandem.observe.origin import (
    describe_origin,
    describe_settings,
    hide_secrets_of_command,
    read_commit,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_settings_are_written_without_keys():
    config = Config(
        observe=ObserveConfig(wandb_key="hush", wandb_project="mine"),
        passthrough=Passthrough(sglang={"api-key": ("hush",), "tp-size": ("2",)}),
        custom={"JUDGE_TOKEN": "hush", "stop_token_ids": [1]},
    )
    settings = describe_settings(config)
    assert "hush" not in json.dumps(settings)
    assert settings["observe"]["wandb_project"] == "mine"
    assert settings["passthrough"]["sglang"]["tp-size"] == ["2"]
    assert settings["custom"]["stop_token_ids"] == [1]


def test_command_is_written_without_keys():
    command = ["train.py", "--wandb-key", "hush", "--lr", "1e-6", "--sglang-api-key=hush"]
    command += ["--train-env-vars", '{"HF_TOKEN": "hush"}', "--rollout-stop-token-ids", "1", "2"]
    shown = hide_secrets_of_command(command)
    assert "hush" not in " ".join(shown)
    assert shown[3:5] == ["--lr", "1e-6"]
    assert shown[-2:] == ["1", "2"]


def test_origin_names_versions_and_machine():
    origin = describe_origin(["train.py"])
    assert origin["command"] == ["train.py"]
    assert origin["versions"]["tandem"] == __version__
    assert "torch" in origin["versions"]
    assert origin["machine"]["num_cores"] >= 1


@pytest.mark.parametrize("layout", ["branch", "packed", "detached", "worktree"])
def test_commit_is_read_from_every_layout_of_a_repository(tmp_path, layout):
    git = tmp_path / ".git"
    head = COMMIT if layout == "detached" else "ref: refs/heads/main"
    if layout == "worktree":
        main = tmp_path / "elsewhere"
        git.write_text("gitdir: elsewhere/worktrees/one\n")
        (main / "worktrees" / "one").mkdir(parents=True)
        (main / "worktrees" / "one" / "commondir").write_text("../..\n")
        (main / "worktrees" / "one" / "HEAD").write_text(head + "\n")
        git = main
    else:
        git.mkdir()
        (git / "HEAD").write_text(head + "\n")
    if layout == "packed":
        (git / "packed-refs").write_text(f"# pack-refs\n{COMMIT} refs/heads/main\n")
    elif layout != "detached":
        (git / "refs" / "heads").mkdir(parents=True)
        (git / "refs" / "heads" / "main").write_text(COMMIT + "\n")
    inner = tmp_path / "examples" / "math"
    inner.mkdir(parents=True)
    assert read_commit(inner) == COMMIT


def test_folder_without_a_repository_has_no_commit(tmp_path):
    (tmp_path / ".git").mkdir()  # a broken one, so that nothing above is asked
    assert read_commit(tmp_path) is None
