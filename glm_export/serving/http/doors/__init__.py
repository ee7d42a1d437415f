"""What a server answers: OpenAI's API, blanks and labels, tokens, health; a file a kind of question."""
