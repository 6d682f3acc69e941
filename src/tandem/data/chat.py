"""Text and tokens of a prompt: chat templates, applied once and in one place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tandem.data.questions import Question
from tandem.errors import ConfigError, DataError

TOKENIZE_AT_ONCE = 1024


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a Hugging Face folder. No network, and no code from the folder is run."""
    if not Path(folder).is_dir():
        raise ConfigError(
            f"--hf-checkpoint {folder} is not a folder; wanted a local Hugging Face folder "
            "with config.json and a tokenizer (download it first)"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"--hf-checkpoint {folder} holds no tokenizer that can be loaded ({error}); "
            "wanted tokenizer.json and tokenizer_config.json there"
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """How questions become text and tokens."""

    tokenizer: Any
    apply_chat_template: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def render(self, question: Question) -> str:
        """The text the policy continues; raises ConfigError or DataError when there is none.

        With the chat template a plain string is one user message and the text ends with the
        generation prompt; without it a string is used as it stands.
        """
        content = question.content
        if not self.apply_chat_template:
            if isinstance(content, str):
                return content
            raise ConfigError(
                f"{question.where}: the prompt is a list of messages; "
                "pass --apply-chat-template to render it, or give a string"
            )
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        settings = {"add_generation_prompt": True, **self.kwargs}
        return render_messages(
            self.tokenizer, messages, tools=question.tools, where=question.where, kwargs=settings
        )

    def tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of each text, int32 `[T]`.

        Special tokens are not added: a chat template writes its own, and adding them again would
        begin the prompt twice.
        """
        tokens: list[np.ndarray] = []
        for start in range(0, len(texts), TOKENIZE_AT_ONCE):
            some = list(texts[start : start + TOKENIZE_AT_ONCE])
            ids = self.tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
            tokens += [np.asarray(one, dtype=np.int32) for one in ids]
        return tokens


def render_messages(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    where: str = "",
    kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The messages as text by the tokenizer's own chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "--apply-chat-template is set and the tokenizer has no chat template; add "
            "chat_template.jinja to the --hf-checkpoint folder, or give prompts as plain strings"
        )
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(messages), tools=tools and list(tools), tokenize=False, **(kwargs or {})
        )
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise DataError(
            f"{where or 'messages'}: the chat template refuses these messages: {error}; "
            "mend the row, or --apply-chat-template-kwargs"
        ) from error
