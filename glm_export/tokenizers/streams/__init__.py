"""Replies while they are written: ids to text, and text to what a message will say, equal to the whole however cut.

Imports `chat/replies.py`, which reads a whole reply; the readers beside this room import it.
"""

from glm_export.tokenizers.streams.deltas import (
    ContentDelta,
    Delta,
    MetadataDelta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStarted,
    message_of,
)
from glm_export.tokenizers.streams.detokenizer import Detokenizer
from glm_export.tokenizers.streams.reply_stream import ReplyStream

__all__ = [
    "ContentDelta",
    "Delta",
    "Detokenizer",
    "MetadataDelta",
    "ReasoningDelta",
    "ReplyStream",
    "ToolCallArguments",
    "ToolCallStarted",
    "message_of",
]
