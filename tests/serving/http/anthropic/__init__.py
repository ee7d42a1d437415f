"""Tests of the room ``serving/http/anthropic``: the real client."""
