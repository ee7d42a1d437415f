"""What stands around every verb: help in panels, tables that fold, a file of options, completion, how much is said."""
