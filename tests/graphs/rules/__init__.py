"""Tests of the room ``graphs/rules``: a folder a vocabulary, a file a rule."""
