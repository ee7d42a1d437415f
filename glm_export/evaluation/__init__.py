"""What a program costs on text: perplexity, KL divergence, agreement, recall, cost by layer.

Imports proof, sessions, generation, calibration.
"""
