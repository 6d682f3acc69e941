"""Prompts: data files, chat templates, and the order in which a run takes them."""

from tandem.data.chat import load_tokenizer
from tandem.data.sft import mask_question
from tandem.data.source import PromptSource, load_eval_prompts

__all__ = ["PromptSource", "load_eval_prompts", "load_tokenizer", "mask_question"]
