"""Tests of the room ``serving/metrics``."""
