"""Explicit quantization: ``QuantizeLinear`` and ``DequantizeLinear``."""
