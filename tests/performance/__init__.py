"""Tests of the room ``performance``."""
