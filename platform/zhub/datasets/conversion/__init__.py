"""Foreign data files become rows on the user's machine: recognised by content, read in pieces, mapped by their columns.

No network, no database. Only the worker's validation also comes here (``foreign``), to say what a refused file is.
"""
