"""ONNX Runtime's own products, lookups and caches of integers."""
