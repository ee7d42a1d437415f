"""What this machine is: processor, memory, GPU as the driver tells it.

Imports errors alone.
"""
