"""What each verb's report says: its claims, its sections, and what every number means.

Imports the rooms of those verbs, for what they measured.
"""
