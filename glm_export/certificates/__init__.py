"""What was proven of a folder, written into it and signed; and whether it is still the folder that was proven.

Imports api, proof's reports, artifacts and machine. The only room that imports the libraries of extra ``sign``, when
there is a signature to make or to read.
"""
