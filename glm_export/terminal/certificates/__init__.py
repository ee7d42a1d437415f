"""The verbs of what was proven: written into a folder and signed, and held to it again.

Imports certificates, and what the verbs share.
"""
