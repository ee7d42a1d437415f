"""The verb that hands a folder over to other people's servers: a file a target, found by its name."""
