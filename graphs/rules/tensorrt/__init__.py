"""A cache of fixed size and the gates, as TensorRT reads them."""
