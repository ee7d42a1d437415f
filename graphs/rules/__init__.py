"""Rewrites of canonical operators into what a dialect speaks: a folder a vocabulary, a file a rule.

Imports the rewriter, queries and spec. A rule says what it matches, why it does not, and what it puts there.
"""
