"""What ONNX node shapes are for: the patterns a GLM is made of, the canonical program, its dialects.

Imports spec alone; ``patterns/`` stand below the reference model and know torch, everything else knows ONNX and neither
torch nor a runtime.
"""
