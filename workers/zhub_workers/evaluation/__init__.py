"""Grading of answers, and evaluation of a base or an expert on a suite. No database, no store, no Ray."""
