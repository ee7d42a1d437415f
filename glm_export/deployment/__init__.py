"""From a checkpoint or program to an engine, and why one will not load: a few calls over the rooms below.

Imports api, engines, exporter, artifacts.
"""
