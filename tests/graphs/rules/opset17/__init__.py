"""Tests of the rules in ``graphs/rules/opset17``."""
