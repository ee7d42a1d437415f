"""Rewrites of canonical operators into what a dialect speaks: a folder a vocabulary, a file a rule."""
