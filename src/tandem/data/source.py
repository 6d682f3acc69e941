"""The prompts of a run in their order, which a checkpoint restores, and those of held-out sets."""

import hashlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tandem.config import DataConfig, EvalSet
from tandem.data.chat import Template
from tandem.data.questions import Question, questions_of
from tandem.data.read import read_table
from tandem.errors import ConfigError, DataError
from tandem.types import Prompt

log = logging.getLogger(__name__)


class PromptSource:
    """Gives prompts epoch after epoch; the place in it is three numbers.

    With `is_sft` prompts keep their content and are neither rendered nor tokenised: a supervised
    loss masks the whole conversation itself (`tandem.data.sft`).
    """

    def __init__(self, cfg: DataConfig, tokenizer: Any, *, is_sft: bool = False) -> None:
        if cfg.prompt_data is None:
            raise ConfigError("there are no prompts: set --prompt-data to a .jsonl or .parquet")
        rows = read_table(cfg.prompt_data, skip_bad_lines=cfg.skip_bad_lines)
        self._questions = questions_of(rows, cfg, skip_bad_lines=cfg.skip_bad_lines)
        self._template = _template(tokenizer, cfg)
        self._is_sft = is_sft
        if not is_sft:
            # a wrong template shows now, not at the first step
            self._template.render(self._questions[0])
            self._questions = drop_long(
                self._questions, self._template, cfg.rollout_max_prompt_len, cfg.prompt_data
            )
        self._shuffle_seed = cfg.rollout_seed if cfg.rollout_shuffle else None
        self._fingerprint = {
            "prompts": len(self._questions),
            "content": _digest(self._questions),
            "shuffle seed": self._shuffle_seed,
            "chat template arguments": _canonical(cfg.apply_chat_template_kwargs),
            "chat template applied": cfg.apply_chat_template,
        }
        self._epoch = 0
        self._offset = 0
        self._next_index = 0
        self._order = self._order_of(0)

    @property
    def prompts_per_epoch(self) -> int:
        return len(self._questions)

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts, going on into as many further epochs as that needs."""
        chosen: list[Question] = []
        while len(chosen) < count:
            if self._offset == len(self._order):
                self._epoch += 1
                self._offset = 0
                self._order = self._order_of(self._epoch)
            places = self._order[self._offset : self._offset + count - len(chosen)]
            chosen += [self._questions[at] for at in places]
            self._offset += len(places)
        first = self._next_index
        self._next_index += count
        if self._is_sft:
            nothing_T = np.zeros(0, dtype=np.int32)
            return [
                _prompt(first + nth, question, "", nothing_T) for nth, question in enumerate(chosen)
            ]
        return compose(chosen, self._template, first_index=first)

    def state(self) -> dict[str, Any]:
        """The place in the data and a fingerprint of it, fit for JSON."""
        return {
            "epoch": self._epoch,
            "offset": self._offset,
            "next_index": self._next_index,
            "fingerprint": dict(self._fingerprint),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved place; raises DataError naming what changed in the data since."""
        saved = state.get("fingerprint", {})
        changed = [
            f"{name} was {saved.get(name)!r} and is {now!r}"
            for name, now in self._fingerprint.items()
            if saved.get(name) != now
        ]
        if changed:
            raise DataError(
                "the checkpoint's place in the data fits other data: "
                + "; ".join(changed)
                + ". Give --prompt-data and its settings as they were, or start a new run"
            )
        self._epoch = state["epoch"]
        self._offset = state["offset"]
        self._next_index = state["next_index"]
        self._order = self._order_of(self._epoch)

    def _order_of(self, epoch: int) -> list[int]:
        order = list(range(len(self._questions)))
        if self._shuffle_seed is not None:
            # the dialect's rule: each epoch shuffles the original order, not the last epoch's
            random.Random(self._shuffle_seed + epoch).shuffle(order)
        return order


def load_eval_prompts(
    eval_set: EvalSet, tokenizer: Any, *, skip_bad_lines: bool = False
) -> tuple[Prompt, ...]:
    """The set's prompts, rendered and tokenised, in the file's order; indices count from 0.

    The set's `metadata_overrides`, `rm_type` and `custom_rm_path` are laid over each prompt's
    metadata, where the reward stage looks for them.
    """
    rows = read_table(eval_set.path, skip_bad_lines=skip_bad_lines)
    questions = questions_of(rows, eval_set, skip_bad_lines=skip_bad_lines)
    overrides = dict(eval_set.metadata_overrides)
    if eval_set.rm_type is not None:
        overrides["rm_type"] = eval_set.rm_type
    if eval_set.custom_rm_path is not None:
        overrides["custom_rm_path"] = eval_set.custom_rm_path
    template = _template(tokenizer, eval_set)
    kept = [
        replace(question, metadata={**question.metadata, **overrides})
        for question in drop_long(questions, template, eval_set.max_prompt_len, eval_set.path)
    ]
    return tuple(compose(kept, template, first_index=0))


def compose(questions: Sequence[Question], template: Template, *, first_index: int) -> list[Prompt]:
    """The questions rendered and tokenised, with running indices."""
    texts = [template.render(question) for question in questions]
    rows = zip(questions, texts, template.tokens(texts), strict=True)
    return [_prompt(first_index + nth, *row) for nth, row in enumerate(rows)]


def drop_long(
    questions: Sequence[Question], template: Template, max_tokens: int | None, path: str
) -> tuple[Question, ...]:
    """The questions of at most `max_tokens` tokens when rendered, in their order."""
    if max_tokens is None:
        return tuple(questions)
    texts = [template.render(question) for question in questions]
    lengths = [len(tokens_T) for tokens_T in template.tokens(texts)]
    kept = tuple(
        question
        for question, length in zip(questions, lengths, strict=True)
        if length <= max_tokens
    )
    if not kept:
        raise DataError(
            f"{path}: all {len(questions)} prompts are longer than {max_tokens} tokens "
            f"(the shortest has {min(lengths)}); raise the limit on the prompt's length"
        )
    if len(kept) < len(questions):
        log.warning(
            "%s: %d of %d prompts are longer than %d tokens and were dropped",
            path,
            len(questions) - len(kept),
            len(questions),
            max_tokens,
        )
    return kept


def _template(tokenizer: Any, cfg: DataConfig | EvalSet) -> Template:
    return Template(
        tokenizer=tokenizer,
        apply_chat_template=cfg.apply_chat_template,
        kwargs=cfg.apply_chat_template_kwargs,
    )


def _prompt(index: int, question: Question, text: str, tokens_T: np.ndarray) -> Prompt:
    return Prompt(
        index=index,
        tokens_T=tokens_T,
        text=text,
        content=question.content,
        label=question.label,
        metadata=question.metadata,
    )


def _digest(questions: Sequence[Question]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for question in questions:
        digest.update(_canonical([question.content, question.label, question.metadata]).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
