"""The job protocol: claims, leases, retries, the reaper, events and logs of jobs.

``admission`` decides which job may start next.
"""
