"""The self-test of a zygote before it runs anything: a program that tries to get out, and what it must report."""

from zhub.sandbox.program import Limits, Program, Value

_SOURCE = """
import _socket, _thread, os

def read(path):
    with open(path, "rb") as file:
        return file.read(1)

ATTEMPTS = {
    "read a file": lambda: read("/etc/passwd"),
    "list a directory": lambda: os.listdir("/"),
    "read its own /proc": lambda: read("/proc/self/environ"),
    "read its parent's /proc": lambda: read(f"/proc/{os.getppid()}/environ"),
    "make a file": lambda: open("made", "w"),
    "make a file in /tmp": lambda: open("/tmp/zhub-sandbox-made", "w"),
    "change a mode": lambda: os.chmod("/tmp", 0o777),
    "open a socket": lambda: _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM),
    "open a unix socket": lambda: _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM),
    "fork": os.fork,
    "start a thread": lambda: _thread.start_new_thread(int, ()),
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "signal its parent": lambda: os.kill(os.getppid(), 0),
    "signal everybody": lambda: os.kill(-1, 0),
}

def got_out():
    succeeded = []
    for name, attempt in ATTEMPTS.items():
        try:
            attempt()
        except (OSError, RuntimeError):
            continue
        succeeded.append(name)
    return succeeded + [f"saw {name}" for name in os.environ]
"""

PROGRAM = Program(_SOURCE, ["got_out()"], limits=Limits(wall_s=10.0))
HELD = (Value([]),)
