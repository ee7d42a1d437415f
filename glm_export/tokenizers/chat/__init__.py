"""Conversations as prompts, and replies as messages: a folder's own template, or the prompt of its generation.

A template is a program that came with a checkpoint. It runs in Jinja's sandbox, in a process of its own that may
take so long and so much memory (``renderer.py``); the prompts built in are ours, and run here.
"""

from glm_export.tokenizers.chat.messages import Message

__all__ = ["Message"]
