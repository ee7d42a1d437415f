"""Tests of the room ``proof/sides``."""
