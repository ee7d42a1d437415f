"""How fast a model is and what memory it takes, beside what the machine allows.

Imports api, sessions and machine. Not called ``bench``: a package of that name would hide the public verb.
"""
