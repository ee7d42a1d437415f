"""Checkpoint -> ONNX program folder, streaming: options, plan, trace, weights, other loaders' files.

Imports calibration, checkpoints, graphs, artifacts, tokenizers. ``torch.onnx`` is known to ``trace.py`` alone.
"""
