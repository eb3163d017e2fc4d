"""Engines, tenant sessions, logins and migrations.

Tables are in ``models``, and queries with the functions that need them.
"""
