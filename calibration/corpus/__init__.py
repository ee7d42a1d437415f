"""Text as rows of a model's own tokens, with provenance.

Imports tokenizers and inputs; needs no torch.
"""
