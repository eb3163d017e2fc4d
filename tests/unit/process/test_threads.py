"""A thread that its process cannot do without takes the process with it."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging, threading
from zhub.process.threads import start_vital

logging.basicConfig()
stopping, ended = threading.Event(), threading.Event()

def body():
    try:
        {body}
    finally:
        ended.set()

start_vital(body, name="relay", stopping=stopping)
ended.wait(30)
stopping.wait(30 if {dies} else 0)
print("the process went on")
"""


def run(body: str, *, dies: bool) -> "subprocess.CompletedProcess[str]":
    program = PROGRAM.format(body=body, dies=dies)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise ValueError('a bug')", "a bug"),
        ("raise SystemExit(0)", "SystemExit"),
        ("pass", "the thread relay ended"),
    ],
)
def test_a_process_ends_with_a_thread_that_it_needs_and_says_why(body: str, why: str) -> None:
    ended = run(body, dies=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "the thread relay" in ended.stderr and why in ended.stderr


def test_a_thread_that_was_told_to_stop_may_end() -> None:
    ended = run("stopping.set()", dies=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "the process went on\n", "")
