"""What a folder is for, said in it: which loaders run it, snippets that fit it, and the model card made of both.

Imports calibration, tokenizers and spec.
"""
