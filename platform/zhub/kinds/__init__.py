"""Kinds of jobs: the entry of a kind says what runs it, what it may do, and which other rows its end changes.

Code elsewhere in zhub never branches on the name of a kind, except in the room that owns the kind.
"""
