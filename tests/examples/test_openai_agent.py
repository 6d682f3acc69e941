"""The agent of the example plays by the rules that its training counts on."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def agent(monkeypatch):
    """The module as a launch script's interpreter finds it, from the root of the project."""
    monkeypatch.syspath_prepend(str(ROOT))
    import examples.openai_agent.agent

    yield examples.openai_agent.agent
    for name in [name for name in sys.modules if name.split(".")[0] == "examples"]:
        del sys.modules[name]


class Script:
    """A client whose model says what is written here, and which keeps what it was asked."""

    def __init__(self, *replies):
        self._replies = list(replies)
        self.asked = []
        self.chat = SimpleNamespace(completions=self)

    async def create(self, *, model, messages, max_tokens):
        self.asked.append([dict(message) for message in messages])
        message = SimpleNamespace(content=self._replies.pop(0))
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])


async def test_a_game_ends_when_the_number_is_found(agent):
    client = Script("2", "4", "3", "1")
    game = await agent.play(client, "m", 3)
    assert (game.is_won, game.guesses, game.num_sensible) == (True, ("2", "4", "3"), 3)
    assert [message["content"] for message in client.asked[-1]] == [
        agent.TASK,
        "2",
        "higher",
        "4",
        "lower",
    ]


async def test_guesses_that_hints_ruled_out_are_not_sensible(agent):
    game = await agent.play(Script("2", "1", None), "m", 4)
    assert (game.is_won, game.num_sensible) == (False, 1)
    assert len(game.guesses) == agent.MAX_GUESSES


async def test_the_generate_function_can_be_called_as_the_dialect_calls_it(agent):
    from tandem.hooks import load
    from tandem.rollout.custom.generating import GENERATE

    hook = load("examples.openai_agent.trained.generate", GENERATE)
    assert hook.optional == frozenset()
    await sys.modules["examples.openai_agent.trained"].CLIENT.close()
