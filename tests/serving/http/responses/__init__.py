"""Tests of the room ``serving/http/responses``: the real client."""
