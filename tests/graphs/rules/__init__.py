"""Tests of the room ``graphs/rules``: a file a rule."""
