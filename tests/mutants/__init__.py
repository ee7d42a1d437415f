"""A mutation check anyone can run: ``make mutants``."""
