"""Prompts: data files, chat templates, and the order in which a run takes them."""

from tandem.data.chat import Template, load_tokenizer
from tandem.data.heldout import HeldOut, load_eval_prompts
from tandem.data.questions import Columns, Question, questions_of
from tandem.data.read import Row, Table, read_table
from tandem.data.sft import Masked, mask_conversation, mask_question, mask_response
from tandem.data.source import PromptSource

__all__ = [
    "Columns",
    "HeldOut",
    "Masked",
    "PromptSource",
    "Question",
    "Row",
    "Table",
    "Template",
    "load_eval_prompts",
    "load_tokenizer",
    "mask_conversation",
    "mask_question",
    "mask_response",
    "questions_of",
    "read_table",
]
