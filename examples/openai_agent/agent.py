"""An agent as many people have one: the official `openai` client, a loop, and no idea of training.

    python examples/openai_agent/agent.py --base-url http://127.0.0.1:8000/v1 --secret 7

It guesses a number from 1 to 5, and is told "higher" or "lower" until it finds it or gives up.
"""

import argparse
import asyncio
import os
from dataclasses import dataclass

import openai

TASK = "I think of a number from 1 to 5. Guess it."
MAX_GUESSES = 3
HIGHEST = 5


@dataclass(frozen=True)
class Game:
    """How a game went."""

    is_won: bool
    guesses: tuple[str, ...]
    num_sensible: int  # guesses that the hints before them left possible


async def play(client: openai.AsyncOpenAI, model: str, secret: int) -> Game:
    """Plays one game against the endpoint."""
    messages = [{"role": "user", "content": TASK}]
    guesses: list[str] = []
    low, high, num_sensible = 1, HIGHEST, 0
    while len(guesses) < MAX_GUESSES:
        reply = await client.chat.completions.create(model=model, messages=messages, max_tokens=8)
        guess = (reply.choices[0].message.content or "").strip()
        guesses.append(guess)
        if guess in map(str, range(low, high + 1)):
            num_sensible += 1
            low, high = (int(guess) + 1, high) if int(guess) < secret else (low, int(guess) - 1)
        if guess == str(secret):
            return Game(True, tuple(guesses), num_sensible)
        messages.append({"role": "assistant", "content": guess})
        messages.append({"role": "user", "content": hint(guess, secret)})
    return Game(False, tuple(guesses), num_sensible)


def hint(guess: str, secret: int) -> str:
    """What the world says of a wrong guess."""
    if not guess.isdecimal() or len(guess) > 1:
        return "a number from 1 to 5, please"
    return "higher" if int(guess) < secret else "lower"


async def main() -> None:
    """Plays one game and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", default="policy")
    parser.add_argument("--secret", type=int, default=4)
    options = parser.parse_args()
    api_key = os.environ.get("OPENAI_API_KEY", "none")
    async with openai.AsyncOpenAI(base_url=options.base_url, api_key=api_key) as client:
        game = await play(client, options.model, options.secret)
    print(" ".join(game.guesses), "- found" if game.is_won else "- not found")


if __name__ == "__main__":
    asyncio.run(main())
