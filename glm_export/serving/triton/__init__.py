"""A model of Triton Inference Server: the engine behind its Python backend, and repositories for that and two others.

Imports serving below its web server, api, sessions and artifacts. Needs tritonclient to write a repository, and to run
only what tritonserver itself brings along.
"""
