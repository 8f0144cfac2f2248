"""What OpenAI's clients send and get: the JSON forms of its API, as far as a model network can answer them.

Fields and their defaults are those of OpenAI's API reference. A field that is not listed is ignored, as clients send
many that say nothing about the answer; one that would change the answer and cannot be heeded is refused.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "Chat",
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatDelta",
    "ChatMessage",
    "ChunkChoice",
    "EmbeddingObject",
    "Embeddings",
    "EmbeddingsList",
    "ErrorBody",
    "ErrorEnvelope",
    "ModelObject",
    "ModelsList",
    "StreamOptions",
    "TextPart",
    "Usage",
]


class Embeddings(msgspec.Struct):
    """``POST /v1/embeddings``."""

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    """A part of a message's content."""

    text: str


class ChatMessage(msgspec.Struct):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The whole content."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(msgspec.Struct):
    """``stream_options``."""

    include_usage: bool = False


class Chat(msgspec.Struct):
    """``POST /v1/chat/completions``."""

    model: str
    messages: list[ChatMessage]
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: bool | None = None
    tools: list[msgspec.Raw] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


class Usage(msgspec.Struct, omit_defaults=True):
    """Tokens of a request and its answer."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None


class EmbeddingObject(msgspec.Struct):
    """One vector: numbers, or base64 of them as little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingsList(msgspec.Struct):
    """The answer to ``Embeddings``."""

    data: list[EmbeddingObject]
    model: str
    usage: Usage
    object: str = "list"


class ChatChoice(msgspec.Struct):
    """The one answer."""

    message: dict[str, str]
    finish_reason: str
    index: int = 0
    logprobs: None = None


class ChatCompletion(msgspec.Struct):
    """The answer to ``Chat``."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"


class ChatDelta(msgspec.Struct, omit_defaults=True):
    """What a piece of a stream adds."""

    role: str | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct):
    """The one answer of a stream."""

    delta: ChatDelta
    finish_reason: str | None = None
    index: int = 0
    logprobs: None = None


class ChatChunk(msgspec.Struct):
    """A piece of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    object: str = "chat.completion.chunk"


class ModelObject(msgspec.Struct):
    """A model that is served now."""

    id: str
    created: int
    owned_by: str
    object: str = "model"


class ModelsList(msgspec.Struct):
    """``GET /v1/models``."""

    data: list[ModelObject]
    object: str = "list"


class ErrorBody(msgspec.Struct):
    """What went wrong."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorEnvelope(msgspec.Struct):
    """OpenAI's envelope of errors."""

    error: ErrorBody
