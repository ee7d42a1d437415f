"""What a server has done, counted and told to Prometheus, and read again from there."""
