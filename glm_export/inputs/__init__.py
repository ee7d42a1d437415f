"""What a decoder is fed: prompts padded to calls, and one call carried over to another layout.

Imports spec and errors; numpy alone.
"""
