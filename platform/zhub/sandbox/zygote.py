"""The zygote: a warm interpreter that forks a confined child for each program, and does nothing else.

It never sees what a program is or what it gave: the two ends of the child's pipes come as descriptors over the
control socket, and the child reads and writes them itself. A fork inherits its parent's memory; this parent's holds
nothing of other programs.

Started by ``zhub.sandbox.pool`` without ``zhub``'s own packages: imports here cost every start.
"""

import _socket
import array
import ctypes
import datetime
import decimal
import gc
import hashlib
import json
import math
import os
import resource
import signal
import string
import struct
import sys
import typing
import zlib
from pathlib import Path

from zhub.sandbox import landlock, seccomp
from zhub.sandbox.evaluation import evaluate

# What answers import most, and what needs a shared library that a confined process could not open any more.
WARM = (datetime, decimal, hashlib, math, string, typing, zlib)

CONTROL = 0
REQUEST = struct.Struct("<QI")  # memory in bytes, processor time in seconds
REPLY = struct.Struct("<iQ")  # wait status, greatest memory in KiB
END = b"end"
READY = b"ready"
# The first line of every child, written before anything of the program is read.
CONFINED, UNCONFINED = "confined", "unconfined"
JOB_LENGTH = struct.Struct("<Q")
UNPRIVILEGED = 65534  # nobody
WORKING_DIRECTORY = Path("/proc/self/cwd")  # which a process may follow also where the path to it is closed
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION_3 = 0x20080522


def main() -> None:
    os.environ.clear()
    control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, CONTROL)
    devnull = os.open(os.devnull, os.O_RDWR)
    machine = os.uname().machine
    library = [Path(entry) for entry in sys.path if Path(entry).is_dir()]
    ruleset = landlock.make_ruleset(readable=_modules(library), listable=library)
    libc = ctypes.CDLL(None, use_errno=True)
    _drop_privileges(libc, machine, library)
    # Garbage collection in a child would touch, and so copy, every page that it shares with this process.
    gc.collect()
    gc.freeze()
    control.send(READY)
    while True:
        message, ends, _flags, _address = control.recvmsg(64, _socket.CMSG_SPACE(8))
        if not message:
            return
        memory_bytes, cpu_s = REQUEST.unpack(message)
        job, results = array.array("i", ends[0][2])
        zygote = os.getpid()
        child = os.fork()
        if child == 0:
            try:
                _confine(libc, machine, zygote, ruleset, devnull, job, results, memory_bytes, cpu_s)
            except BaseException as exc:
                os.write(results, json.dumps([UNCONFINED, f"{type(exc).__name__}: {exc}"]).encode() + b"\n")
                os._exit(1)
            try:
                _run(job, results)
            finally:
                os._exit(1)
        os.close(job)
        os.close(results)
        over = control.recv(64)  # END, or nothing where the pool is gone
        os.kill(child, signal.SIGKILL)
        _pid, status, usage = os.wait4(child, 0)
        if not over:
            return
        control.send(REPLY.pack(status, usage.ru_maxrss))


def _modules(library: list[Path]) -> list[Path]:
    """The standard library without what else was installed into it."""
    return [
        entry for root in library for entry in root.iterdir() if entry.name not in ("site-packages", "dist-packages")
    ]


def _drop_privileges(libc: ctypes.CDLL, machine: str, library: list[Path]) -> None:
    """As root, become nobody; give up every capability.

    Where a directory above the library is closed to nobody, as root's home is, the process goes into the library while
    it is root, and imports from its working directory: whoever stands there needs no way to it. Where the library's own
    files are closed to others, the process stays root without capabilities.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
        if _readable_by_nobody(library) or _entered(library):
            os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
    header = struct.pack("<Ii", CAPABILITY_VERSION_3, 0)
    if libc.syscall(ctypes.c_long(CAPSET[machine]), header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset: cannot drop capabilities")
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl: cannot set no_new_privs")


def _entered(library: list[Path]) -> bool:
    """Go into the library and import from there, if nobody can read it like that."""
    root = min(library, key=lambda path: len(path.parts))
    if not all(path.is_relative_to(root) for path in library):
        return False
    moved = {str(path): str(WORKING_DIRECTORY / path.relative_to(root)) for path in library}
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        os.chdir(root)
        readable = _readable_by_nobody([Path(path) for path in moved.values()])
        if readable:
            _import_from(moved)
        else:
            os.fchdir(here)
    finally:
        os.close(here)
    return readable


def _readable_by_nobody(library: list[Path]) -> bool:
    """Whether nobody may list these directories and read what lies in them. Only for root, which it remains."""
    os.seteuid(UNPRIVILEGED)
    try:
        return all(
            os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0), effective_ids=True)
            for root in library
            for path in (root, *_modules([root]))
        )
    except OSError:
        return False
    finally:
        os.seteuid(0)


def _import_from(moved: dict[str, str]) -> None:
    """Import from these directories instead of those: what is imported from now on, and from packages that are here."""

    def new(path: str) -> str:
        # The longest first: the directory of extension modules lies in that of the others.
        for old in sorted(moved, key=len, reverse=True):
            if path == old or path.startswith(f"{old}/"):
                return moved[old] + path[len(old) :]
        return path

    sys.path[:] = map(new, sys.path)
    for module in list(sys.modules.values()):
        places = getattr(module, "__path__", None)
        if isinstance(places, list):
            places[:] = map(new, places)
    sys.path_importer_cache.clear()


def _confine(
    libc: ctypes.CDLL,
    machine: str,
    zygote: int,
    ruleset: int,
    devnull: int,
    job: int,
    results: int,
    memory_bytes: int,
    cpu_s: int,
) -> None:
    """Give up, in the child, everything but memory, time, reading the standard library and its two pipes."""
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != zygote:
        raise OSError("the zygote is gone")
    for descriptor in (0, 1, 2):
        os.dup2(devnull, descriptor)
    landlock.restrict(ruleset)
    low = 3
    for kept in sorted((job, results)):
        os.closerange(low, kept)
        low = kept + 1
    os.closerange(low, 256)
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    seccomp.install(machine, seccomp.filter_program(machine, os.getpid()))


def _run(job: int, results: int) -> None:
    def write(line: bytes) -> None:
        while line:
            line = line[os.write(results, line) :]

    write(json.dumps([CONFINED]).encode() + b"\n")
    # By its length, not to the end of the pipe, whose other end a fork elsewhere in the pool's process may keep open.
    (length,) = JOB_LENGTH.unpack(_read(job, JOB_LENGTH.size))
    text = _read(job, length)
    os.close(job)
    evaluate(json.loads(text), write)


def _read(descriptor: int, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        piece = os.read(descriptor, min(length - len(content), 1 << 16))
        if not piece:
            raise EOFError
        content += piece
    return bytes(content)
