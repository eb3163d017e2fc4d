"""Experts, their versions and aliases, and the base models that they belong to.

Nothing here starts a job. This file imports nothing: `zhub --help` must not import SQLAlchemy.
"""
