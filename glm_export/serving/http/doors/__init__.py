"""What a server answers: OpenAI's API, blanks and labels, tokens, health, the page; a file a kind of question."""
