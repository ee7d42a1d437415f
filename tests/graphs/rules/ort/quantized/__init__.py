"""Tests of the rules in ``graphs/rules/ort/quantized``."""
