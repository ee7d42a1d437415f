"""Who is held to whom: checkpoints, exported folders, engines, ONNX files that others made, and runs that were saved.

Imports sessions, artifacts.
"""
