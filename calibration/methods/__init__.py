"""The papers' formulas: SmoothQuant, AWQ, GPTQ, and where smoothing is folded into parameters.

Imports spec and ``quantize``; pure functions of tensors.
"""
