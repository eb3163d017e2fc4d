"""Trainings that are submitted by themselves: definitions, cron, and the firing of ticks.

What they submit takes the same way as a user's request, in ``training``.
"""
