"""The demonstration that ``zhub demo`` walks through, and the task families that it trains on.

Only the command line, tests and benchmarks import it.
"""
