"""Model folders behind a URL: fetched into a cache that a machine's processes share, each file held to its hash.

May import ``checkpoints.weight_files``, ``model_folder``, ``progress`` and ``errors``. fsspec, and what it takes for a
store, is imported when a URL is opened; a path never needs it.
"""
