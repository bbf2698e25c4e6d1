"""The chat template of a model, applied to a conversation as vLLM applies it.

Knows a tokenizer's templates. Knows no source and no row.
"""

from typing import Any

from jinja2 import TemplateError

from hubplugin.compress.calibration import conversations
from hubplugin.compress.calibration.content_format import takes_parts
from hubplugin.compress.calibration.printing import guarded
from hubplugin.errors import CalibrationError, one_line
from hubplugin.model.construction.tokenizer_files import NOW

# what a template raises for a conversation that it does not take
REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class ChatTemplate:
    """Renders conversations. `drop_nulls`: they come from an Arrow table, which fills in keys without a value."""

    def __init__(self, tokenizer: Any, where: str, drop_nulls: bool = False) -> None:
        self.tokenizer, self.where, self.drop_nulls = tokenizer, where, drop_nulls

    def render(self, turns: list[Any], tools: Any) -> str:
        """The text of a conversation, with the tools it was held with.

        Raises CalibrationError where the model has no template for any row, ValueError with the reason where this row
        does not fit it.
        """
        try:
            schemas = conversations.read_tools(tools, drop_nulls=self.drop_nulls)
            template = self._template(schemas)
            read = conversations.read_turns(turns, parts=takes_parts(template), drop_nulls=self.drop_nulls)
            # as in vLLM, where a template knows the role if it names it
            if any(turn["role"] == "developer" for turn in read) and not _names_developer(template):
                read = conversations.without_developer(read)
            given = {"tools": guarded(schemas), "strftime_now": NOW.strftime}
            return str(self.tokenizer.apply_chat_template(guarded(read), tokenize=False, **given))
        except REFUSALS as error:
            raise ValueError(f"does not fit the chat template: {one_line(error)}") from error

    def question(self, messages: list[dict[str, str]]) -> str:
        """The text of turns up to where the assistant speaks. Raises CalibrationError where there is no template, or it
        does not take them."""
        try:
            template = self._template(None)
            read = conversations.read_turns(messages, parts=takes_parts(template), drop_nulls=False)
            given = {"tokenize": False, "add_generation_prompt": True, "strftime_now": NOW.strftime}
            return str(self.tokenizer.apply_chat_template(guarded(read), **given))
        except REFUSALS as error:
            what = f"a question does not fit the chat template: {one_line(error)}"
            raise CalibrationError(self.where, what, "use other conversations, or plain text") from error

    def _template(self, schemas: list[dict[str, Any]] | None) -> str:
        """The template for conversations with or without tools; a tokenizer may have one for each."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise CalibrationError(
                self.where, "holds messages, and the model has no chat template", "use plain text, or a chat model"
            )
        try:
            template = str(self.tokenizer.get_chat_template(None, tools=schemas))
            takes_parts(template)
        except (TemplateError, ValueError) as error:
            raise CalibrationError(
                self.where, f"the chat template cannot be used: {one_line(error)}", "mend the model's chat template"
            ) from error
        return template


def _names_developer(template: str) -> bool:
    return '"developer"' in template or "'developer'" in template
