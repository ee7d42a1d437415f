"""Numbers seen while running: activation ranges, and the Q/DQ programs made from them. Not built yet."""
