"""What a person at a terminal types and sees: one file a verb, with its tables.

Imports api and everything below it, heavy rooms inside the verbs. Nothing imports this room but ``cli.py``.
"""
