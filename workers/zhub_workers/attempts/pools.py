"""The pools of workers: with torch, or without."""

POOLS = ("torch", "light")  # in the order in which an agent asks for jobs
