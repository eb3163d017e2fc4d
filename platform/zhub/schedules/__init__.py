"""Schedules submit trainings automatically: their definitions, cron expressions, and the firing of ticks.

``training`` handles the submitted requests in the same way as a user's request.
"""
