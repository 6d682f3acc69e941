"""Users' functions that fail as often as a fate says; `args.fate(index)` names that of a sample."""

import asyncio

from tandem.hooks import generate

FATES = (
    "generate raises at once",
    "generate raises late",
    "out of time",
    "sample hook raises",
    "reward raises",
    "reward is late",
)
FAILED = (*FATES[:2], FATES[3])
UNJUDGED = FATES[4:]


async def answer(args, sample, sampling_params):
    """The engine's answer, or what the sample's fate has in store."""
    fate = args.fate(sample.index)
    if fate == "generate raises at once":
        raise ValueError("no tools today")
    got = await generate(sample.tokens, sampling_params)
    told = got["meta_info"]
    logprobs = [logprob for logprob, _ in told["output_token_logprobs"]]
    sample.append_response_tokens(args, got["output_ids"], logprobs, meta_info=told)
    if sample.status == sample.Status.ABORTED:
        return sample
    if fate == "generate raises late":
        raise KeyError("answer")
    if fate == "out of time":
        try:
            async with asyncio.timeout(0.0005):
                await asyncio.sleep(10)
        except TimeoutError:
            sample.status = sample.Status.TRUNCATED
    return sample


def mark(args, sample, *, rollout_id, evaluation):
    """A sample hook."""
    if args.fate(sample.index) == "sample hook raises":
        raise ArithmeticError("out of marks")
    sample.metadata["marked_in"] = rollout_id


async def judge(args, sample):
    """A reward, where it is to come."""
    fate = args.fate(sample.index)
    if fate == "reward raises":
        raise RuntimeError("the judge is out")
    if fate == "reward is late":
        await asyncio.sleep(10)
    return float(sample.group_index)


def broken(*arguments, **keywords):
    """Any hook, raising."""
    raise LookupError("nothing here")


async def broken_async(*arguments, **keywords):
    """Any async hook, raising."""
    raise LookupError("nothing here")
