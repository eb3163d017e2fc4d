"""Kinds of jobs: one entry for each says what runs it, what it may do, and what its end means for other rows.

Nothing else in zhub decides by the name of a kind that is not its own.
"""
