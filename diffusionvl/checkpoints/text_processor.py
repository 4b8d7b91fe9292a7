"""A tokenizer with the interface of a processor, for models that read text alone."""

from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase, ProcessorMixin

from ..modeling.errors import UserError


class TextProcessor(ProcessorMixin):
    """What encodes, decodes and saves as the processor of a vision-language model does, over a tokenizer alone.

    Its folder is that of the tokenizer, so any other program can read it.

    Args:
        tokenizer: A tokenizer with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)

    def __call__(self, text: Any, images: Any = None, videos: Any = None, **kwargs: Any) -> BatchEncoding:
        """Tokenises; images and videos are refused."""
        if images is not None or videos is not None:
            raise UserError("this model reads text alone; leave images and videos out")
        return self.tokenizer(text, **{"return_token_type_ids": False, **kwargs})

    def apply_chat_template(self, conversation: list[Any], **kwargs: Any) -> Any:
        """As the tokenizer's own; contents may be lists of text parts, which templates of text models cannot read.

        Args:
            conversation: Messages, or a list of conversations.
            **kwargs: As in transformers.

        Raises:
            ValueError: A part is not text.
        """
        batched = bool(conversation) and isinstance(conversation[0], list)
        chats = [[_as_text(message) for message in chat] for chat in (conversation if batched else [conversation])]
        # Of several templates, the tokenizer takes its default one.
        own = {} if isinstance(self.chat_template, dict) else {"chat_template": self.chat_template}
        kwargs["tokenizer_kwargs"] = {"return_token_type_ids": False, **kwargs.get("tokenizer_kwargs", {})}
        return self.tokenizer.apply_chat_template(chats if batched else chats[0], **{**own, **kwargs})

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Saves the tokenizer and the chat template."""
        self.tokenizer.chat_template = self.chat_template
        self.tokenizer.save_pretrained(save_directory, **kwargs)


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is one text."""
    content = message["content"]
    if isinstance(content, str):
        return message
    for part in content:
        if part["type"] != "text":
            raise UserError(f"this model reads text alone, but a message holds {part}; take it out")
    return {**message, "content": "".join(part["text"] for part in content)}
