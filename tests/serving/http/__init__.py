"""Tests of the room ``serving/http``: a real server over the embedded models."""
