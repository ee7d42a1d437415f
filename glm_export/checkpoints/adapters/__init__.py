"""What was trained on top of a checkpoint and saved apart: read, and merged a weight at a time while that is read.

Imports its neighbours in ``checkpoints/`` and spec; PEFT is not needed, and nothing of an adapter is run.
"""
