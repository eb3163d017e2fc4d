"""What a training job is made of before it is queued: the request, its checks, its estimate, its pack key.

The training itself is in ``zhub_workers``.
"""
