"""Tests of the room ``proof/layers``."""
