"""One file a weight format: encode, decode; found by the type of its record (``spec/weight_formats.py``).

Imports spec; torch computes. Knows no ONNX.
"""
