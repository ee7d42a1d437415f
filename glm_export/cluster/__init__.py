"""Ray: a cluster joined, or begun on this machine, and a function applied on its nodes to one thing after another."""
