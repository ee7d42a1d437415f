"""Text as rows of a model's own tokens, with provenance."""
