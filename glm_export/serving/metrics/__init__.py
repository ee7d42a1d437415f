"""What a server has done: counted and told to Prometheus, a line and a span a request; and read again from there."""
