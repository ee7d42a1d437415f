"""Is the program what PyTorch says? Cases, runners, comparison, reports.

Imports sessions, generation, calibration, artifacts. Polygraphy is known to this room alone.
"""
