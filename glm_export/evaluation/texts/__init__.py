"""What a model makes of texts that are given: logits, likelihoods, hidden states, vectors.

Imports sessions and generation; needs no torch.
"""
