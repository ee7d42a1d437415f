"""What travels between steps, on disk: programs, engines, their manifests, and folders written whole.

Imports spec and errors; loads neither torch nor ONNX.
"""
