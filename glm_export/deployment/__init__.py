"""From a checkpoint or program to an engine, how others repeat it, and why one will not load: calls over rooms below.

Imports api, engines, exporter, artifacts.
"""
