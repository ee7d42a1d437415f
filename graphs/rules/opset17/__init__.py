"""Primitives of opset 17."""
