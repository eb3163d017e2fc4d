"""The agent process: claims jobs, starts attempts on workers, records how they end.

No other room of the workers reads the database.
"""
