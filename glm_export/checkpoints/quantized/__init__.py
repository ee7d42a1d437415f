"""Weights that were quantized before they were published, one file a scheme: worked out in float32 when they are read.

Which scheme it is, the tensors say; configs only supply what tensors leave open. Imports its neighbours in checkpoints,
spec and errors.
"""
