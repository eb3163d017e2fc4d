"""The embedded stack of ``zhub up``: PostgreSQL, Valkey, Ray and zhub's own processes on one machine.

One process supervises the others: ``stack`` says which there are and in what order they start, ``processes``
keeps them running and ends them, ``postgres`` prepares the database server, ``binaries`` finds the programs.
"""
