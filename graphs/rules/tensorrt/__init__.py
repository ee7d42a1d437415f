"""A cache of fixed size, as TensorRT has it."""
