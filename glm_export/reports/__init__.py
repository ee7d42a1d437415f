"""What a verb found, as one page that needs no network and no scripts, with its numbers beside it as JSON.

Imports every room whose findings it shows. Matplotlib is known to this room alone, and imported when plots are drawn.
"""
