"""ONNX Runtime as a session. The only room that imports onnxruntime to run programs."""
