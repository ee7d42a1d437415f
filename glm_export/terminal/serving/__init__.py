"""The verbs of what many people ask: a server, a file of requests, and a look at a server that runs."""
