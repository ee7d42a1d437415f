"""OpenAI's responses over conversations, nothing stored: what a request says, and the response, whole or as events."""
