"""Programs whose precision differs from node to node: float16 that keeps in float32 what it cannot hold; float32 twins.

Imports spec and the rewriter.
"""
