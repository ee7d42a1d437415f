"""What knows ONNX node shapes: the patterns a GLM is made of, the canonical program, its dialects."""
