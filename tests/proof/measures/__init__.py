"""Tests of the room ``proof/measures``."""
