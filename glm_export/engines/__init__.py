"""TensorRT engines: from an ONNX program to a folder that runs, and what may keep it from running.

Imports exporter, artifacts, graphs, machine and spec. TensorRT and TensorRT-RTX are known to ``vendor.py`` alone: it
hands the library on as an object, and every name asked of it is held against the recorded names of four versions.
"""
