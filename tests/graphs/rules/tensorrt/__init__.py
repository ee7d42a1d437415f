"""Tests of the rules in ``graphs/rules/tensorrt``."""
