"""Which files a confined process may read: Landlock, which needs no privilege (Linux 5.13).

Everything that the running kernel's Landlock knows is forbidden (reading, writing, making, removing, executing; TCP;
abstract sockets and signals to processes outside), except reading beneath the paths named. It says nothing about
``stat``: that a file exists, and how large it is, can be seen.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1

READ_FILE, READ_DIR = 1 << 2, 1 << 3
# include/uapi/linux/landlock.h: the rights that each ABI knows.
FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}
FILE_RIGHTS_SINCE_5 = 0xFFFF
TCP_RIGHTS, TCP_ABI = 0b11, 4
SCOPES, SCOPE_ABI = 0b11, 6


def abi() -> int:
    """The version of the kernel's Landlock; 0 where it has none or has it off."""
    try:
        return _call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(CREATE_RULESET_VERSION))
    except OSError:
        return 0


def make_ruleset(readable: Iterable[Path], listable: Iterable[Path]) -> int:
    """Return a descriptor of the rules: files beneath ``readable`` may be read, directories beneath both listed.

    Raises:
        OSError: the kernel has no Landlock, or a path is missing.
    """
    version = abi()
    files = FILE_RIGHTS.get(version, FILE_RIGHTS_SINCE_5)
    attributes = struct.pack("<Q", files)
    if version >= TCP_ABI:
        attributes += struct.pack("<Q", TCP_RIGHTS)
    if version >= SCOPE_ABI:
        attributes += struct.pack("<Q", SCOPES)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    ruleset = _call(CREATE_RULESET, buffer, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    for paths, rights in ((readable, READ_FILE | READ_DIR), (listable, READ_DIR)):
        for path in paths:
            # The kernel refuses rights over directories in the rule of a file.
            _allow(ruleset, path, rights if path.is_dir() else READ_FILE)
    return ruleset


def _allow(ruleset: int, path: Path, rights: int) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("<Qi", rights, opened)
        buffer = ctypes.create_string_buffer(rule, len(rule))
        _call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(RULE_PATH_BENEATH), buffer, ctypes.c_uint(0))
    finally:
        os.close(opened)


def restrict(ruleset: int) -> None:
    """Confine this process, for good, to the rules. It must have no_new_privs.

    Raises:
        OSError: the kernel refused.
    """
    _call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    answer = int(libc.syscall(ctypes.c_long(number), *arguments))
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock: {os.strerror(code)}")
    return answer
