"""Held-out prompts: the same reader and renderer, with an evaluation set's own keys."""

from dataclasses import dataclass, replace
from typing import Any

from tandem.config import EvalSet
from tandem.data.chat import Template
from tandem.data.questions import Columns, questions_of
from tandem.data.read import read_table
from tandem.data.source import compose, drop_long
from tandem.types import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The prompts of one evaluation set; indices count from 0."""

    prompts: tuple[Prompt, ...]
    num_dropped_long: int = 0
    num_skipped_lines: int = 0


def load_eval_prompts(
    eval_set: EvalSet, tokenizer: Any, *, skip_bad_lines: bool = False
) -> HeldOut:
    """The set's prompts, rendered and tokenised, in the file's order.

    The set's `metadata_overrides`, `rm_type` and `custom_rm_path` are laid over each prompt's
    metadata, where the reward stage looks for them.
    """
    table = read_table(eval_set.path, skip_bad_lines=skip_bad_lines)
    columns = Columns(
        input=eval_set.input_key,
        label=eval_set.label_key,
        metadata=eval_set.metadata_key,
        tools=eval_set.tool_key,
    )
    questions, num_skipped = questions_of(table, columns, skip_bad_lines=skip_bad_lines)
    overrides = dict(eval_set.metadata_overrides)
    if eval_set.rm_type is not None:
        overrides["rm_type"] = eval_set.rm_type
    if eval_set.custom_rm_path is not None:
        overrides["custom_rm_path"] = eval_set.custom_rm_path
    template = Template(
        tokenizer=tokenizer,
        apply_chat_template=eval_set.apply_chat_template,
        kwargs=eval_set.apply_chat_template_kwargs,
    )
    kept = drop_long(questions, template, eval_set.max_prompt_len, eval_set.path)
    kept = tuple(
        replace(question, metadata={**question.metadata, **overrides}) for question in kept
    )
    return HeldOut(
        prompts=tuple(compose(kept, template, first_index=0)),
        num_dropped_long=len(questions) - len(kept),
        num_skipped_lines=table.num_bad_lines + num_skipped,
    )
