"""The server on many machines: the same application in replicas on a Ray cluster. The only room that imports Ray."""
