"""Damaged and hostile inputs: each reader works on them, or raises one line; nothing hangs, nothing is run."""
