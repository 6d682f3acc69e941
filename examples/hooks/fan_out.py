"""--custom-generate-function-path examples.hooks.fan_out.draft_and_revision

One attempt gives two samples that share its reward: a draft, and its revision with the draft in
front of it. Together they count as one attempt in the loss.
"""

import copy
from typing import Any

from tandem.hooks import Sample, generate, tokenizer

AGAIN = "\nAgain: "


async def draft_and_revision(
    args: Any, sample: Sample, sampling_params: dict[str, Any]
) -> list[Sample]:
    """Both samples; the revision's draft is its prompt, so it is trained once."""
    draft = copy.deepcopy(sample)
    await write(args, draft, sampling_params, branch=0)
    revision = copy.deepcopy(sample)
    revision.tokens = draft.tokens + tokenizer().encode(AGAIN, add_special_tokens=False)
    await write(args, revision, sampling_params, branch=1)
    reward = float(revision.response == draft.response)
    for each in (draft, revision):
        if Sample.Status.ABORTED not in (draft.status, revision.status):
            each.reward = reward
    return [draft, revision]


async def write(args: Any, sample: Sample, sampling_params: dict[str, Any], *, branch: int) -> None:
    """Adds one answer to the sample; branches draw their own random numbers."""
    answer = await generate(sample.tokens, sampling_params, branch=branch)
    told = answer["meta_info"]
    logprobs = [logprob for logprob, _ in told["output_token_logprobs"]]
    sample.append_response_tokens(
        args, answer["output_ids"], logprobs, meta_info=told, text=answer["text"]
    )
