"""A checkpoint calibrated layer by layer, in the memory of one.

Imports checkpoints, modeling, corpus, observers, methods.
"""
