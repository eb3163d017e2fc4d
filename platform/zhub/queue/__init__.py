"""The job protocol: claims, leases, retries, the reaper, events and logs of jobs.

Who may start next is decided in ``admission``.
"""
