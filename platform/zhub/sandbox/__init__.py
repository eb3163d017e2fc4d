"""Runs untrusted Python: users' graders, and code that models wrote.

A warm interpreter (the zygote) forks a child for each program. The child gives up every right but to compute: rlimits,
no_new_privs, Landlock and a seccomp filter, none of which needs a privilege. A watchdog outside kills it. Where the
kernel cannot do this, nothing is run.
"""

from zhub.sandbox.pool import Sandbox, check_kernel
from zhub.sandbox.program import Limits, Outcome, Program, Raised, Unreadable, Value

__all__ = ["Limits", "Outcome", "Program", "Raised", "Sandbox", "Unreadable", "Value", "check_kernel"]
