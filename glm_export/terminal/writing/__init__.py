"""The verbs that write text: continued, in a conversation, and into blanks."""
