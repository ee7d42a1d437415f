"""Quality, and what rounding each layer costs, in the memory of one layer.

Imports proof, sessions, calibration, and how predictions are compared.
"""
