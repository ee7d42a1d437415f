"""Tests of the room ``generation``."""
