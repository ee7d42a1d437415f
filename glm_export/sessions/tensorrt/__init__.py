"""A TensorRT engine as a session; TensorRT itself is reached through ``engines/vendor.py``."""
