"""Tests of the room ``checkpoints``."""
