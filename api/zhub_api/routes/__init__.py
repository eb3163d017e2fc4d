"""One file for each group of routes: requests in, calls of ``zhub``, responses out. The rules are in ``zhub``."""
