"""Tokens to tokens over any session: greedy and sampled, streams, blanks, labels.

Imports sessions' protocol, inputs, tokenizers.
"""
