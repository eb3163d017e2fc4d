"""Organisations, projects, API keys, and the caller that a key stands for.

Row-level security itself is in ``database`` and the migrations.
"""
