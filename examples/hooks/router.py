"""--custom-generate-function-path examples.hooks.router.generate

Posts to the router, as generate functions written for slime do; only their imports change.
"""

from typing import Any

from tandem.hooks import Sample, post


async def generate(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """The sample continued by one answer; cut off before, it goes on where it was."""
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    room = sampling_params["max_new_tokens"] - sample.response_length
    payload = {
        "input_ids": sample.tokens,
        "sampling_params": {**sampling_params, "max_new_tokens": room},
        "return_logprob": True,
    }
    output = await post(url, payload)
    told = output["meta_info"]
    new_tokens = [token for _, token, _ in told["output_token_logprobs"]]
    new_log_probs = [log_prob for log_prob, _, _ in told["output_token_logprobs"]]
    sample.tokens = sample.tokens + new_tokens
    sample.response_length += len(new_tokens)
    sample.response += output["text"]
    sample.loss_mask = None  # all of the response is trained
    sample.rollout_log_probs = (sample.rollout_log_probs or []) + new_log_probs
    match told["finish_reason"]["type"]:
        case "length":
            sample.status = Sample.Status.TRUNCATED
        case "abort":
            sample.status = Sample.Status.ABORTED
        case "stop":
            sample.status = Sample.Status.COMPLETED
    return sample
