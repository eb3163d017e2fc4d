"""The agent process: it claims jobs, starts attempts on workers, and records how the attempts end.

No other room of the workers reads the database.
"""
