"""The patterns a GLM is built on, each said twice: in PyTorch, and as ONNX nodes while exporting.

Imports spec; torch computes. The only part of ``graphs`` that the reference model imports.
"""
