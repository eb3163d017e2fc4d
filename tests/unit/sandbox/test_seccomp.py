"""The numbers that the sandbox's filter is made of, against those that libseccomp and Python know."""

import ctypes
import fcntl
import os
import termios
from typing import Any

import pytest

from zhub.sandbox import landlock, seccomp, zygote
from zhub.sandbox.seccomp import ALLOWED, ARCHITECTURES

LIBRARY = "libseccomp.so.2"
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    **ALLOWED,
    "kill": seccomp.KILL,
    "tgkill": seccomp.TGKILL,
    "fcntl": seccomp.FCNTL,
    "ioctl": seccomp.IOCTL,
    "seccomp": seccomp.SECCOMP,
    "capset": (zygote.CAPSET["x86_64"], zygote.CAPSET["aarch64"]),
    "landlock_create_ruleset": (landlock.CREATE_RULESET,) * 2,
    "landlock_add_rule": (landlock.ADD_RULE,) * 2,
    "landlock_restrict_self": (landlock.RESTRICT_SELF,) * 2,
}


@pytest.fixture(scope="module")
def libseccomp() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        reason = f"{LIBRARY} is not installed (Debian: libseccomp2)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_every_call_has_the_number_that_libseccomp_gives_it(libseccomp: Any, machine: str) -> None:
    architecture, column = ARCHITECTURES[machine]
    resolve = libseccomp.seccomp_syscall_resolve_name_arch
    known = {name: resolve(ctypes.c_uint32(architecture), name.encode()) for name in NUMBERS}
    # libseccomp gives a negative number to a call that this architecture lacks.
    expected = {name: None if number < 0 else number for name, number in known.items()}
    assert {name: numbers[column] for name, numbers in NUMBERS.items()} == expected


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_no_name_is_unknown_to_every_architecture(libseccomp: Any, machine: str) -> None:
    unknown = -1  # __NR_SCMP_ERROR: no architecture has such a call
    resolve = libseccomp.seccomp_syscall_resolve_name_arch
    architecture = ctypes.c_uint32(ARCHITECTURES[machine][0])
    assert [name for name in NUMBERS if resolve(architecture, name.encode()) == unknown] == []


def test_the_commands_that_are_allowed_are_those_that_python_names() -> None:
    commands = (
        fcntl.F_DUPFD, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_DUPFD_CLOEXEC,
    )  # fmt: skip
    assert commands == seccomp.FCNTL_COMMANDS
    requests = (termios.TCGETS, termios.FIONBIO, termios.FIONREAD, termios.FIONCLEX, termios.FIOCLEX)
    assert requests == seccomp.IOCTL_COMMANDS
