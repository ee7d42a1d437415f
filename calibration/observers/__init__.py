"""What is measured of activations: histograms and thresholds, each a small pure thing.

Imports errors alone; torch computes.
"""
