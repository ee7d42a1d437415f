"""What a comparison says besides its verdict: token by token, column by column, and of texts that both sides write.

Imports sessions, generation, inputs. Nothing here passes or fails: ``compare.py`` and ``check.py`` judge.
"""
