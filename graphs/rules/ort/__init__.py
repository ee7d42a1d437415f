"""ONNX Runtime's own operators."""
