"""Measurements of versions and what they decide: suites, statistics, gates, promotions, feedback.

Nothing here runs a model.
"""
