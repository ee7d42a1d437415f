"""Tests of the room ``objective``."""
