"""A GPU beside a session: memory and a stream, work captured to be launched again, tokens chosen where logits lie."""
