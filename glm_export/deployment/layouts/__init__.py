"""An exported folder as other programs want theirs laid out: a file a program, links or copies of the same weights.

Imports artifacts, exporter and spec.
"""
