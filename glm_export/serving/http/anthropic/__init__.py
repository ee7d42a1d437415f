"""Anthropic's API over conversations: what a request says, and the message, whole or as events."""
