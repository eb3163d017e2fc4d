"""What every process needs to run: settings, logs, metrics, traces, shutdown, wake-ups.

Nothing here knows jobs or tenants.
"""
