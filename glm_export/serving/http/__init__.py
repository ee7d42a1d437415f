"""The server's doors: OpenAI's API, blanks, tokens, health. The only room that imports a web framework."""
