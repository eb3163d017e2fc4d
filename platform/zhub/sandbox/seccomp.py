"""Which system calls a confined program may make: a list of what is allowed, as a classic BPF program.

What is not on the list fails with EPERM, so a call that a new kernel adds is refused from the start. Python computes
with what is listed; it cannot fork, start threads, execute, open sockets, change files' attributes, or reach
another process. Numbers: ``asm/unistd_64.h`` and ``asm-generic/unistd.h`` of Linux 6.1;
``tests/unit/sandbox/test_seccomp.py`` compares them with libseccomp's.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

# audit.h's name of the architecture, and the column of the tables below.
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# name: (x86_64, aarch64); None where the architecture has no such call. The frequent ones come first.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "brk": (12, 214),
    "futex": (202, 98),
    "newfstatat": (262, 79),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "openat": (257, 56),
    "close": (3, 57),
    "getdents64": (217, 61),
    "clock_gettime": (228, 113),
    "getrandom": (318, 278),
    "exit_group": (231, 94),
    "exit": (60, 93),
    "stat": (4, None),
    "lstat": (6, None),
    "statx": (332, 291),
    "open": (2, None),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getgroups": (115, 158),
    "getpgid": (121, 155),
    "getpgrp": (111, None),
    "getsid": (124, 156),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "uname": (63, 160),
    "set_tid_address": (218, 96),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "restart_syscall": (219, 128),
    # Alarms go to the process itself.
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    "pause": (34, None),
    "arch_prctl": (158, None),
}
KILL, TGKILL = (62, 129), (234, 131)
FCNTL, IOCTL = (72, 25), (16, 29)
SECCOMP = (317, 277)

# F_SETOWN and F_SETSIG are missing on purpose: they make the kernel send signals to another process.
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # DUPFD, GETFD, SETFD, GETFL, SETFL, DUPFD_CLOEXEC
IOCTL_COMMANDS = (0x5401, 0x5421, 0x541B, 0x5450, 0x5451)  # TCGETS, FIONBIO, FIONREAD, FIONCLEX, FIOCLEX

LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, KILL_PROCESS, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

SECCOMP_SET_MODE_FILTER = 1


def filter_program(machine: str, pid: int) -> bytes:
    """Return the filter for a process ``pid`` on ``machine``: signals only to itself, nothing but what is allowed.

    A call through another architecture's table (32 bits on 64) kills the process, since its numbers mean other calls.
    """
    architecture, column = ARCHITECTURES[machine]
    code = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
    ]
    for numbers in ALLOWED.values():
        number = numbers[column]
        if number is not None:
            code += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    code += _allow_argument(KILL[column], 0, [pid])
    code += _allow_argument(TGKILL[column], 0, [pid])
    code += _allow_argument(FCNTL[column], 1, FCNTL_COMMANDS)
    code += _allow_argument(IOCTL[column], 1, IOCTL_COMMANDS)
    code.append((RETURN, 0, 0, REFUSE))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _allow_argument(number: int, argument: int, values: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Allow a call only where its argument is one of ``values``. The kernel reads these as 32 bits, as this does."""
    block = [(LOAD, 0, 0, FIRST_ARGUMENT + 8 * argument)]
    for value in values:
        block += [(JUMP_IF_EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
    block.append((RETURN, 0, 0, REFUSE))
    return [(JUMP_IF_EQUAL, 0, len(block), number), *block]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def install(machine: str, program: bytes) -> None:
    """Filter this process's system calls from now on. It must have no_new_privs.

    Raises:
        OSError: the kernel has no seccomp filters, or forbids them.
    """
    code = ctypes.create_string_buffer(program, len(program))
    argument = _Program(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    number = SECCOMP[ARCHITECTURES[machine][1]]
    if libc.syscall(ctypes.c_long(number), SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(argument)) != 0:
        code_of_failure = ctypes.get_errno()
        raise OSError(code_of_failure, f"seccomp: {os.strerror(code_of_failure)}")
