"""Publishers' folders: found, identified, read lazily under their official names, and never left.

Imports families, tokenizers and spec; torch and safetensors read the tensors.
"""
