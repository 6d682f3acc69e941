"""Guess the number: the model writes a digit, the game replies higher or lower.

--custom-generate-function-path examples.guess_number.game.play
"""

from dataclasses import dataclass
from typing import Any

from tandem.hooks import Sample
from tandem.rollout.turns import TURNS, Limits, converse

HIGHER, LOWER = "+", "-"
LIMITS = Limits(turns=4, turn_tokens=1)


@dataclass
class Game:
    """One secret digit."""

    secret: int
    num_digits: int = 0
    is_won: bool = False

    async def reply(self, text: str) -> str | None:
        """`+` if the secret is higher, `-` if it is lower or no digit came; None when it is hit."""
        guess = int(text) if text.isdecimal() and len(text) == 1 else None
        self.num_digits += guess is not None
        self.is_won = guess == self.secret
        if self.is_won:
            return None
        return HIGHER if guess is not None and guess < self.secret else LOWER


async def play(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """A whole game: 1 for a hit, less 0.1 a turn, and 0.1 for playing by the rules."""
    games: list[Game] = []

    def new_game() -> Game:
        games.append(Game(int(sample.label)))
        return games[-1]

    await converse(args, sample, sampling_params, new_game, LIMITS)
    if sample.status != Sample.Status.ABORTED:
        game, num_turns = games[-1], len(sample.metadata[TURNS])
        by_rules = game.num_digits / num_turns
        sample.reward = 0.1 * by_rules + (1.0 - 0.1 * num_turns if game.is_won else 0.0)
        sample.metadata["is_won"] = game.is_won
    return sample
