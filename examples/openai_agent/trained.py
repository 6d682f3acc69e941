"""The agent next door as a generate function: all that training it takes.

python train.py ... --custom-generate-function-path examples.openai_agent.trained.generate
"""

import openai

from examples.openai_agent.agent import play
from tandem.server import TrainedAgent

# one pool of connections for all games; where they go and who asks is each game's own
CLIENT = openai.AsyncOpenAI(base_url="http://unset", api_key="unset", max_retries=0)


async def attempt(base_url: str, api_key: str, sample) -> float:
    """Plays one game at the endpoint; its reward: half for finding the number, half for listening,
    which is the share of guesses that the hints left possible."""
    client = CLIENT.with_options(base_url=base_url, api_key=api_key)
    game = await play(client, "policy", secret=int(sample.label))
    return 0.5 * game.is_won + 0.5 * game.num_sensible / len(game.guesses)


generate = TrainedAgent(attempt)
