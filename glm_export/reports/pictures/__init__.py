"""What verbs found and wrote down, as one picture or one table: ranges, costs of layers, programs beside each other."""
