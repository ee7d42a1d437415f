"""Tests of the room ``serving/http/conversation``."""
