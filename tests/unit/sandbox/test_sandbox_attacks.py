"""Programs that try to get out of the sandbox, to break it, or to forge what they gave; all are contained."""

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from zhub.sandbox import Limits, Program, Sandbox, Value

SECRET = "s3cr3t-value-123"
LIMITS = Limits(wall_s=2.0, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    os.environ["ZHUB_TEST_TOKEN"] = SECRET
    with Sandbox(workers=1) as made:
        yield made
    del os.environ["ZHUB_TEST_TOKEN"]


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """What there is to attack: a readable file, a writable directory, listeners, a process."""
    directory = tmp_path_factory.mktemp("target")
    directory.chmod(0o777)
    (directory / "secret").write_text(SECRET)
    (directory / "secret").chmod(0o644)
    hits: list[str] = []
    tcp = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0zhub-attack-test")
    abstract.listen()

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                listener.accept()[0].close()
            except OSError:
                return
            hits.append("connected")

    threads = [threading.Thread(target=accept, args=(listener,)) for listener in (tcp, abstract)]
    for thread in threads:
        thread.start()
    yield {"directory": str(directory), "port": tcp.getsockname()[1], "pid": os.getpid(), "uid": os.getuid()}
    for listener in (tcp, abstract):
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()
    assert hits == []


# Each returns (or leaves in `got`) what it must not get. An exception, an early death or a timeout is no success.
GET_OUT = {
    "read /etc/passwd": "got = open('/etc/passwd').read()",
    "read the repository": f"got = open({str(Path(__file__))!r}).read()",
    "list the repository": f"import os\ngot = os.listdir({str(Path(__file__).parent)!r})",
    "read the home directory": "import os\ngot = os.listdir('/root')",
    "read a file of the host": "got = open(TARGET['directory'] + '/secret').read()",
    "read through a descriptor of the directory": (
        "import os\nfd = os.open(os.path.dirname(os.__file__), os.O_PATH)\n"
        "got = os.open('../' * 20 + 'etc/passwd', 0, dir_fd=fd)"
    ),
    "read its own /proc": "got = open('/proc/self/maps').read()",
    "read its parent's environment": "import os\ngot = open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    "read its parent's memory": "import os\ngot = open(f'/proc/{os.getppid()}/mem', 'rb')",
    "read the pool's environment": "got = open(f'/proc/{TARGET[\"pid\"]}/environ', 'rb').read()",
    "list processes": "import os\ngot = [p for p in os.listdir('/proc') if p.isdigit()]",
    "see the environment": "import os\ngot = dict(os.environ) or None",
    "see the environment in C": (
        "import ctypes\ng = ctypes.CDLL(None).getenv\ng.restype = ctypes.c_char_p\n"
        "got = g(b'ZHUB_TEST_TOKEN') or g(b'PATH')"
    ),
    "connect by TCP": (
        "import _socket\ns = _socket.socket(2, 1)\ns.connect(('127.0.0.1', TARGET['port']))\ngot = 'connected'"
    ),
    "send by UDP": "import _socket\ns = _socket.socket(2, 2)\ngot = s.sendto(b'x', ('127.0.0.1', TARGET['port']))",
    "connect to an abstract socket": (
        "import _socket\ns = _socket.socket(1, 1)\ns.connect('\\0zhub-attack-test')\ngot = 'connected'"
    ),
    "make a pair of sockets": "import _socket\ngot = _socket.socketpair()[0].fileno()",
    "fork": "import os\ngot = os.fork() + 1",
    "spawn by subprocess": "import subprocess\ngot = subprocess.run(['/bin/true']).returncode + 1",
    "spawn by posix_spawn": "import os\ngot = os.posix_spawn('/bin/true', ['true'], {})",
    "execute": "import os\nos.execv('/bin/true', ['true'])",
    "start a thread": "import threading\nt = threading.Thread(target=int)\nt.start()\ngot = 1",
    "write to a directory of the host": "got = open(TARGET['directory'] + '/made', 'w')",
    "change a file of the host": "got = open(TARGET['directory'] + '/secret', 'r+')",
    "remove a file of the host": "import os\nos.unlink(TARGET['directory'] + '/secret')\ngot = 1",
    "rename a file of the host": (
        "import os\nos.rename(TARGET['directory'] + '/secret', TARGET['directory'] + '/x')\ngot = 1"
    ),
    "change a file's mode": "import os\nos.chmod(TARGET['directory'] + '/secret', 0o600)\ngot = 1",
    "change a file's times": "import os\nos.utime(TARGET['directory'] + '/secret', (0, 0))\ngot = 1",
    "truncate a file": "import os\nos.truncate(TARGET['directory'] + '/secret', 0)\ngot = 1",
    "link a file": "import os\nos.symlink('/etc/passwd', TARGET['directory'] + '/link')\ngot = 1",
    "write to the standard library": "import os\ngot = open(os.path.dirname(os.__file__) + '/evil.py', 'w')",
    "write to /tmp": "got = open('/tmp/zhub-evil', 'w')",
    "write to /dev/shm": "got = open('/dev/shm/zhub-evil', 'w')",
    "write to its directory": "got = open('evil', 'w')",
    "make an anonymous file": "import os\ngot = os.memfd_create('x') + 1",
    "signal its parent": "import os\nos.kill(os.getppid(), 0)\ngot = 1",
    "kill its parent": "import os\nos.kill(os.getppid(), 9)\ngot = 1",
    "kill everybody": "import os\nos.kill(-1, 9)\ngot = 1",
    "kill its group": "import os\nos.killpg(os.getpgrp(), 9)\ngot = 1",
    "kill the pool": "import os\nos.kill(TARGET['pid'], 9)\ngot = 1",
    "kill by a thread's id": (
        "import ctypes, os, platform\nn = {'x86_64': (200, 234), 'aarch64': (130, 131)}[platform.machine()]\n"
        "l = ctypes.CDLL(None)\np = os.getppid()\n"
        "got = 1 if l.syscall(n[0], p, 9) == 0 or l.syscall(n[1], p, p, 9) == 0 else None"
    ),
    "have the kernel signal its parent": (
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, 8, os.getppid())\nfcntl.fcntl(r, 10, 9)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, 0o20000)\nos.write(w, b'x')\ngot = 1"
    ),
    "outlive its parent": "import ctypes\ngot = 1 if ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0 else None",
    "become root": "import os\nos.setuid(0)\ngot = 1",
    "raise its limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))\ngot = 1",
    "limit its parent": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))\ngot = 1",
    "call the kernel's dangerous parts": (
        "import ctypes\nl = ctypes.CDLL(None)\n"
        # ptrace, mount, setns, bpf, io_uring_setup, unshare, userfaultfd, perf_event_open, process_vm_readv, keyctl
        "numbers = (101, 165, 308, 321, 425, 272, 323, 298, 310, 250)\n"
        "got = [n for n in numbers if l.syscall(n, 0, 0, 0, 0, 0) >= 0] or None"
    ),
    "call by the 32-bit table": (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, 20 (getpid); int 0x80; ret
        "import platform\nassert platform.machine() == 'x86_64'\n"
        "got = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
    ),
    "call by the x32 table": "import ctypes\ngot = [1] if ctypes.CDLL(None).syscall(0x40000000 + 39) > 0 else None",
    "make a namespace": "import ctypes\ngot = 1 if ctypes.CDLL(None).unshare(0x10000000) == 0 else None",
    "find descriptors that were left open": (
        "import os\n"
        "def is_open(fd):\n"
        "    try:\n        os.fstat(fd)\n        return True\n    except OSError:\n        return False\n"
        "open_ones = [fd for fd in range(3, 64) if is_open(fd)]\n"
        "got = open_ones if len(open_ones) > 1 else None"  # the channel of its own results is one
    ),
    "read another program from the control socket": "import os\ngot = os.read(0, 100) or None",
    "import from where it stands": "import sys\nsys.path.insert(0, TARGET['directory'])\nimport secret\ngot = 1",
}


@pytest.mark.parametrize("name", GET_OUT)
def test_a_program_does_not_get(name: str, sandbox: Sandbox, surroundings: dict[str, object]) -> None:
    source = f"TARGET = {surroundings!r}\ngot = None\n{GET_OUT[name]}"
    outcome = sandbox.run(Program(source, ["str(got)"], limits=LIMITS))
    assert outcome.failure is not None or outcome.ending == "died" or outcome.results == (Value("None"),), outcome
    assert sandbox.run(Program("", ["1 + 1"])).results == (Value(2),)


EXHAUST = {
    "fork bomb": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "thread bomb": (
        "import _thread, time\nwhile True:\n  try: _thread.start_new_thread(time.sleep, (60,))\n"
        "  except RuntimeError: pass"
    ),
    "memory bomb": "a = []\nwhile True: a.append(bytearray(10_000_000))",
    "memory bomb that catches": (
        "a = []\nwhile True:\n  try: a.append(bytearray(10_000_000))\n  except MemoryError: pass"
    ),
    "endless loop": "while True: pass",
    "endless sleep": "import time\ntime.sleep(1000)",
    "endless loop in C": "'a' * 10 ** 7 in 'b' * 10 ** 8\nsum(range(10 ** 12))",
    "endless regular expression": "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
    "signals ignored": (
        "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass"
    ),
    "signals blocked": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
    "output to standard output": "while True: print('x' * 10000)",
    "output to every descriptor": (
        "import os\nwhile True:\n  for fd in range(64):\n    try: os.write(fd, b'x' * 10000)\n    except OSError: pass"
    ),
    "a file that grows": "f = open('/tmp/zhub-fill', 'wb')\nwhile True: f.write(b'x' * 10 ** 6)",
    "many files": "for i in range(10 ** 5): open(f'/tmp/zhub-fill-{i}', 'w').write('x')",
    "many descriptors": "import os\nfds = []\nwhile True: fds.append(os.pipe())",
    "its results closed": "import os\nos.closerange(0, 256)\nwhile True: pass",
}


@pytest.mark.parametrize("name", EXHAUST)
def test_a_program_does_not_exhaust_the_machine(name: str, sandbox: Sandbox) -> None:
    children = len(psutil.Process().children(recursive=True))
    outcome = sandbox.run(Program(EXHAUST[name], ["'reached'"], limits=replace(LIMITS, wall_s=1.0)))
    assert outcome.results == ()
    assert outcome.failure is not None or outcome.ending in ("timeout", "output", "died")
    assert len(psutil.Process().children(recursive=True)) == children
    assert sandbox.run(Program("", ["1 + 1"])).results == (Value(2),)


FORGE = {
    "exit with success": "import os\nos._exit(0)",
    "leave with success": "raise SystemExit(0)",
    "claim a value in every channel": (
        "import os\nfor fd in range(3, 64):\n"
        '  try: os.write(fd, b\'["loaded"]\\n["value", 42]\\n\')\n  except OSError: pass\nos._exit(0)'
    ),
    "claim the end too": (
        "import os\nfor fd in range(3, 64):\n"
        '  try: os.write(fd, b\'["pwned"]\\n["done"]\\n\')\n  except OSError: pass\nos._exit(0)'
    ),
    "claim that it could not be confined": (
        "import os\nfor fd in range(3, 64):\n"
        '  try: os.write(fd, b\'["unconfined", "x"]\\n\')\n  except OSError: pass\nos._exit(0)'
    ),
    "write nonsense": (
        "import os\nfor fd in range(3, 64):\n"
        "  try: os.write(fd, b'\\xff' * 99 + b'\\n')\n  except OSError: pass\nos._exit(0)"
    ),
    "nest without end": (
        "import os\nfor fd in range(3, 64):\n"
        "  try: os.write(fd, b'[' * 50000 + b'\\n')\n  except OSError: pass\nos._exit(0)"
    ),
    "nest a value without end": (
        "import os\nfor fd in range(3, 64):\n"
        "  try: os.write(fd, b'[\"value\",' + b'{\"tuple\":[' * 900 + b']}' * 900 + b']\\n')\n  except OSError: pass\n"
        "os._exit(0)"
    ),
    "send a pickle": (
        "import os, pickle\nclass P:\n  def __reduce__(self): return (os.system, ('touch /tmp/zhub-pwned',))\n"
        "for fd in range(3, 64):\n  try: os.write(fd, pickle.dumps(P()) + b'\\n')\n  except OSError: pass\nos._exit(0)"
    ),
}


@pytest.mark.parametrize("name", FORGE)
def test_a_program_does_not_forge_an_end(name: str, sandbox: Sandbox) -> None:
    outcome = sandbox.run(Program(FORGE[name], ["41"], limits=LIMITS))
    assert outcome.ending == "died" or outcome.failure is not None
    assert not Path("/tmp/zhub-pwned").exists()
    assert sandbox.run(Program("", ["1 + 1"])).results == (Value(2),)


def test_a_value_that_is_equal_to_everything_arrives_as_no_value(sandbox: Sandbox) -> None:
    source = "class E:\n  def __eq__(self, other): return True\n  def __class__(self): return int"
    (result,) = sandbox.run(Program(source, ["E()"])).results
    assert result != Value(3)


def test_what_another_program_was_given_is_not_in_memory(sandbox: Sandbox) -> None:
    """A fork inherits its parent's memory: the zygote must never have seen a program."""
    sandbox.run(Program("", ["x"], {"x": "NEEDLE" + "-IN-HAYSTACK"}))
    source = (
        "import gc\n"
        "needle = 'NEEDLE' + '-IN-'\n"
        "got = [o for o in gc.get_objects() if isinstance(o, (list, dict)) and needle in repr(o)[:10 ** 6]]\n"
        "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "  got += [1 for v in frame.f_locals.values() if type(v) is str and needle + 'HAYSTACK' in v]\n"
        "  frame = frame.f_back\n"
    )
    (result,) = sandbox.run(Program(source, ["[g for g in got if g is not globals()] == []"])).results
    assert result == Value(True)


def test_the_zygote_and_the_pool_survived_all_of_this(sandbox: Sandbox) -> None:
    assert sandbox.run(Program("", ["1 + 1"])).results == (Value(2),)
