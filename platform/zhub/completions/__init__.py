"""Stored completions: what a project keeps of its users' requests and of their answers, and datasets made of it.

Whatever is stored is redacted first, counts as bytes of its organisation, and goes after as many days as its project
says.
"""
