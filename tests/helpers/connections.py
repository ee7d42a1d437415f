"""A script's beginning by which a test sees what connects: Python tells of it before it happens."""

WATCHING = """
import sys

CONNECTING = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname", "urllib.Request")

def watch(event, arguments):
    if event in CONNECTING:
        print("CONNECTS", event, arguments, file=sys.stderr)

sys.addaudithook(watch)
"""
