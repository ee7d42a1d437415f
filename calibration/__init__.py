"""What runtime numbers are for: recipes, ranges measured on text, and weights rounded by them.

Imports checkpoints, modeling, inputs, artifacts and spec. Knows PyTorch, no runtime, and of ``graphs`` only the
patterns a model is made of; an exporter puts its formats into ONNX.
"""
