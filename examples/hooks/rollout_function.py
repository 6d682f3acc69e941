"""--rollout-function-path examples.hooks.rollout_function.shortest_of_two_tries
--eval-function-path examples.hooks.rollout_function.ask_one_question

The whole rollout, and the whole evaluation, in functions of your own. They may be async, as here,
or plain functions, which run in a thread.
"""

import asyncio
from typing import Any

from tandem.hooks import (
    RolloutFnEvalOutput,
    RolloutFnTrainOutput,
    Sample,
    generate,
    tokenizer,
)


async def shortest_of_two_tries(
    args: Any, rollout_id: int, data_source: Any, evaluation: bool = False
) -> RolloutFnTrainOutput:
    """Groups whose samples are the shorter of two answers; they are judged as usual."""
    groups = data_source.get_samples(args.rollout_batch_size)
    await asyncio.gather(*(write(args, sample) for group in groups for sample in group))
    return RolloutFnTrainOutput(samples=groups, metrics={"rollout/num_tries": 2.0})


async def write(args: Any, sample: Sample) -> None:
    """Puts the shorter of two answers on the sample."""
    params = {"max_new_tokens": args.rollout_max_response_len, "temperature": 1.0}
    tries = [
        await generate(sample.tokens, params, sample=sample, branch=branch) for branch in range(2)
    ]
    answer = min(tries, key=lambda answer: len(answer["output_ids"]))
    told = answer["meta_info"]
    logprobs = [logprob for logprob, _ in told["output_token_logprobs"]]
    sample.append_response_tokens(
        args, answer["output_ids"], logprobs, meta_info=told, text=answer["text"]
    )


async def ask_one_question(
    args: Any, rollout_id: int, data_source: Any, evaluation: bool = True
) -> RolloutFnEvalOutput:
    """One greedy answer to one question, under the name `mine`."""
    sample = Sample(group_index=0, index=0, prompt="Count from 1 to 7.", label="7")
    sample.tokens = tokenizer().encode(sample.prompt, add_special_tokens=False)
    answer = await generate(sample.tokens, {"max_new_tokens": 8, "temperature": 0}, sample=sample)
    sample.append_response_tokens(
        args,
        answer["output_ids"],
        [logprob for logprob, _ in answer["meta_info"]["output_token_logprobs"]],
        meta_info=answer["meta_info"],
        text=answer["text"],
    )
    sample.reward = float("7" in sample.response)
    is_cut = sample.status == Sample.Status.TRUNCATED
    return RolloutFnEvalOutput(
        data={"mine": {"rewards": [sample.reward], "truncated": [is_cut], "samples": [sample]}}
    )
