"""The server on many machines: the same application in replicas on a Ray cluster. It alone imports Ray Serve."""
