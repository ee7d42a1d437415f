"""What this machine is: processor, memory, GPU as the driver tells it; its temporary folders, and how a bus error ends.

Imports errors alone.
"""
