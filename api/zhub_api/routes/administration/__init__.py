"""``/v1/organization`` in the OpenAI dialect, and beside it: projects, members, invitations, keys, the audit log; and
``/v1/platform``, which is for operators.
"""
