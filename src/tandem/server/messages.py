"""Chat messages as clients send them, and replies as they get them back."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tandem.server.faults import Refusal
from tandem.server.fields import Fields

ROLES = ("system", "developer", "user", "assistant", "tool")

# what Qwen and Hermes write around a call
CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def read_messages(value: Any) -> list[dict[str, Any]]:
    """The messages as a chat template takes them; raises Refusal.

    Texts in parts are joined, null fields are left out, and arguments of tool calls are objects.
    """
    if not isinstance(value, list) or not value:
        raise Refusal("messages is to be a list of at least one message", param="messages")
    return [_message(one, f"messages[{place}]") for place, one in enumerate(value)]


def read_tools(fields: Fields) -> list[Mapping[str, Any]]:
    """The tools that the template is told of: none where the choice is `none`."""
    tools = fields.take("tools", [])
    if not isinstance(tools, list) or not all(isinstance(one, Mapping) for one in tools):
        raise Refusal("tools is to be a list of objects", param="tools")
    choice = fields.take("tool_choice", "auto")
    if choice == "none":
        return []
    if choice != "auto":
        raise Refusal(
            f"tool_choice is {choice!r}, and this server cannot force a call; use auto or none",
            param="tool_choice",
        )
    return tools


def reply_message(text: str, *, has_tools: bool, call_id: str) -> dict[str, Any]:
    """The assistant's message: its text, and the calls in it where tools were offered.

    Calls that are no JSON object with a name stay text. Their ids are `call_id` and a number.
    """
    calls = _calls(text, call_id) if has_tools else []
    if not calls:
        return {"role": "assistant", "content": text}
    content = text[: text.index("<tool_call>")].strip()
    return {"role": "assistant", "content": content or None, "tool_calls": calls}


def _calls(text: str, call_id: str) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for written in CALL.findall(text):
        try:
            call = json.loads(written)
        except ValueError:
            return []
        if not isinstance(call.get("name"), str):
            return []
        function = {"name": call["name"], "arguments": json.dumps(call.get("arguments", {}))}
        calls.append(
            {"id": f"call_{call_id}_{len(calls)}", "type": "function", "function": function}
        )
    return calls


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Refusal(f"{where} is to be an object", param="messages")
    message = {name: one for name, one in value.items() if one is not None}
    if message.get("role") not in ROLES:
        raise Refusal(
            f"{where} has role {message.get('role')!r}; wanted is one of {', '.join(ROLES)}",
            param="messages",
        )
    if message["role"] == "developer":  # OpenAI's later word for it
        message["role"] = "system"
    message["content"] = _content(message.get("content", ""), where)
    if message.get("tool_calls"):
        message["tool_calls"] = [_with_arguments(one, where) for one in message["tool_calls"]]
    return message


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    known = [text for text in texts if isinstance(text, str)]
    if len(known) != len(texts):
        raise Refusal(f"{where} has content that is not text", param="messages")
    return "".join(known)


def _with_arguments(call: Any, where: str) -> dict[str, Any]:
    """The call with its arguments as an object, as chat templates want them."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Refusal(f"{where} has a tool call without a function's name", param="messages")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # the model's own faulty JSON comes back as it was
            arguments = json.loads(arguments)
    return {**call, "function": {**function, "arguments": arguments}}
