"""Many people's requests over one session: rows that join and leave between steps, and the server in front of them.

May import everything below the command line.
"""
