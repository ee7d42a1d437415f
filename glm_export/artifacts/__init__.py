"""What travels between steps, on disk: programs, engines, their manifests, and folders written whole.

Imports checkpoints' identity, embedded and spec; loads neither torch nor ONNX.
"""
