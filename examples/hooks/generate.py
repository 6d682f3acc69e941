"""--custom-generate-function-path examples.hooks.generate.in_two_pieces

Writes an answer in two pieces, with a remark of ours between them that is not trained.
"""

from typing import Any

from tandem.hooks import Sample, generate, tokenizer

REMARK = " so "


async def in_two_pieces(
    args: Any, sample: Sample, sampling_params: dict[str, Any], evaluation: bool = False
) -> Sample:
    """The sample with a first piece of half the length, the remark, and a second piece."""
    if sample.response_length:  # cut off before (--partial-rollout): begin anew
        del sample.tokens[-sample.response_length :]
        sample.response, sample.response_length = "", 0
        sample.loss_mask = sample.rollout_log_probs = None
    half = {**sampling_params, "max_new_tokens": sampling_params["max_new_tokens"] // 2}
    for piece in range(2):
        answer = await generate(sample.tokens, half)
        told = answer["meta_info"]
        logprobs = [logprob for logprob, _ in told["output_token_logprobs"]]
        sample.append_response_tokens(
            args, answer["output_ids"], logprobs, meta_info=told, text=answer["text"]
        )
        if sample.status == Sample.Status.ABORTED or piece:
            break
        remark = tokenizer().encode(REMARK, add_special_tokens=False)
        sample.append_response_tokens(args, remark, trainable=False, text=REMARK)
    sample.metadata["is_evaluation"] = evaluation
    return sample
