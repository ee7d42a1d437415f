"""Publishers' folders: found, identified, read lazily under their official names, and never left.

Imports families, spec and errors; torch and safetensors read the tensors.
"""
