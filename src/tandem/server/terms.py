"""How a request wants its tokens chosen, in SGLang's words and in OpenAI's."""

from dataclasses import dataclass
from typing import Any

from tandem.server.faults import Refusal
from tandem.server.fields import Fields
from tandem.types import Sampling

SGLANG_LIMIT = 128
"""New tokens of a `/generate` that names no limit."""

COMPLETION_LIMIT = 16
"""New tokens of a `/v1/completions` that names no limit."""

NO_GRAMMAR = "this server samples without grammars"
NO_PENALTY = "this server samples from the model's own distribution"


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What one request asks for each of its answers."""

    sampling: Sampling  # its max_new_tokens is not read
    limit: int | None  # new tokens; None: what the context has room for
    num_choices: int = 1
    seed: int | None = None
    trims_stop: bool = True  # whether text ends before what ended it


def sglang_terms(params: Any) -> Terms:
    """The terms in a `sampling_params` object; raises Refusal."""
    fields = Fields({} if params is None else params, "sampling_params")
    limit = fields.count("max_new_tokens", SGLANG_LIMIT)
    seed = fields.count("sampling_seed")
    trims_stop = not fields.flag("no_stop_trim")
    sampling = _sampling(fields, min_new_tokens=fields.count("min_new_tokens", 0) or 0)
    fields.only("min_p", 0, why=NO_PENALTY)
    num_choices = fields.count("n", 1, low=1) or 1
    fields.done()
    return Terms(
        sampling=sampling, limit=limit, num_choices=num_choices, seed=seed, trims_stop=trims_stop
    )


def openai_terms(fields: Fields, default_limit: int | None) -> Terms:
    """The terms among the fields of a completion or chat request; raises Refusal."""
    limits = [fields.count("max_completion_tokens"), fields.count("max_tokens")]
    given = [limit for limit in limits if limit is not None]
    seed = fields.count("seed", low=-(1 << 63))
    sampling = _sampling(fields, min_new_tokens=fields.count("min_tokens", 0) or 0)
    fields.only("min_p", 0, why=NO_PENALTY)
    fields.only("response_format", {"type": "text"}, why=NO_GRAMMAR)
    num_choices = fields.count("n", 1, low=1) or 1
    limit = given[0] if given else default_limit
    return Terms(sampling=sampling, limit=limit, num_choices=num_choices, seed=seed)


def _sampling(fields: Fields, *, min_new_tokens: int) -> Sampling:
    for name in ("frequency_penalty", "presence_penalty"):
        fields.only(name, 0, why=NO_PENALTY)
    fields.only("repetition_penalty", 1, why=NO_PENALTY)
    fields.only("logit_bias", why=NO_PENALTY)
    for name in ("json_schema", "regex", "ebnf", "structural_tag"):
        fields.only(name, why=NO_GRAMMAR)
    fields.ignore("spaces_between_special_tokens", "stream_interval")
    top_p = fields.number("top_p", 1.0, low=0.0, high=1.0)
    if top_p == 0:
        raise Refusal("top_p is 0; wanted is a number above 0 and up to 1", param="top_p")
    return Sampling(
        max_new_tokens=0,
        temperature=fields.number("temperature", 1.0, low=0.0, high=100.0),
        top_p=top_p,
        top_k=fields.count("top_k", -1, low=-1) or -1,
        min_new_tokens=min_new_tokens,
        stop=fields.texts("stop"),
        stop_token_ids=fields.ids("stop_token_ids"),
        ignore_eos=fields.flag("ignore_eos"),
        skip_special_tokens=fields.flag("skip_special_tokens", True),
    )
