"""Which layer is the first to differ, which node in it, and the smallest file that shows it; one layer in memory.

Imports sessions, calibration, graphs.
"""
