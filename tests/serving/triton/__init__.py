"""Tests of the room ``serving/triton``."""
