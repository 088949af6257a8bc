"""Tools on the wires: what a model is offered, and what it asks for: in pieces, as text or as an object."""

from __future__ import annotations

from typing import Any

from llm.errors import BadReply
from llm.types import Tool, ToolCall
from llm.wire.common import as_object, as_text, decode


def function_spec(tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI and Ollama describe it."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


class PartialCall:
    """One call, put together from the pieces of a stream.

    Args:
        index: what names it within the stream.
    """

    def __init__(self, *, index: Any = None) -> None:
        self.index = index
        self.id = ""
        self._name = ""
        self._arguments: list[str] = []

    def add(self, named: Any, name: Any, arguments: Any) -> None:
        """Take a piece; what is None is not in it.

        Raises:
            BadReply: something in it is no text.
        """
        self.id = self.id or as_text(named or "", "tool call's id")
        self._name = self._name or as_text(name or "", "tool call's name")
        if arguments:
            self._arguments.append(as_text(arguments, "tool call's arguments"))

    def whole(self) -> ToolCall:
        """The call.

        Raises:
            BadReply: it names no tool, or its arguments are no JSON object (a cut answer ends like that).
        """
        return tool_call(self.id, self._name, parsed_arguments(self._name, "".join(self._arguments)))


def tool_call(named: str, name: str, arguments: Any) -> ToolCall:
    """A call whose arguments are known.

    Raises:
        BadReply: it names no tool, or its arguments are no object.
    """
    if not name:
        msg = "the reply asks for a tool without naming it"
        raise BadReply(msg)
    return ToolCall(id=named, name=name, arguments=as_object(arguments, f"arguments of {name[:64]}"))


def parsed_arguments(name: str, text: str) -> Any:
    """The arguments of a call to `name` as they stand in its JSON text; an empty text means there are none.

    Raises:
        BadReply: it is no JSON.
    """
    if not text.strip():
        return {}
    try:
        return decode(text.encode("utf-8", errors="replace"))
    except BadReply as error:
        fault = f"the reply's arguments for the tool {name[:64]!r} are broken: {error}"
    raise BadReply(fault)
