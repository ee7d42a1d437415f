"""A conversation's next message, however it was asked for: rows that write it, and what they say as blocks."""
