"""The verbs of folders behind URLs: one fetched beforehand, and a look at the cache."""
