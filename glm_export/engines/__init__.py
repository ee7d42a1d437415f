"""TensorRT engines: from an ONNX program to a folder that runs, and what may keep it from running."""
