"""Tests of the room ``families``."""
