"""Tests of the room ``exporter``."""
