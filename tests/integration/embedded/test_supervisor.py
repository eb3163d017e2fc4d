"""The supervisor: what it starts it keeps running, and what it stops is gone with all it started."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from child_processes import tick_until, wait_until, wait_until_ended

from zhub.embedded import liveness, processes
from zhub.embedded.liveness import Liveness
from zhub.embedded.processes import Child, Supervisor, end_recorded
from zhub.errors import EmbeddedError

# A child that starts a grandchild, which leaves its parent's session as Ray's processes do.
FAMILY = """
import subprocess, sys, time
nap = "import time, sys; time.sleep(600)"
subprocess.Popen([sys.executable, "-c", nap, sys.argv[1]], start_new_session=True)
time.sleep(600)
"""
# Writes a letter many times a second, until a file is there: then it holds its interpreter for years.
BEATING = """
import re, sys, time
from pathlib import Path
with open(sys.argv[1], "a") as beats:
    while not Path(sys.argv[2]).exists():
        beats.write("x")
        beats.flush()
        time.sleep(0.01)
    re.match("(a+)+$", "a" * 64 + "b")
"""
SUPERVISOR = """
import signal, sys, time
from pathlib import Path
from zhub.embedded.processes import Child, Supervisor
directory, mark, family = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
import os
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
with Supervisor(logs=directory, record=directory / "processes.json", progress=print) as supervisor:
    for name in ("first", "second"):
        supervisor.add(Child(name, [sys.executable, "-c", family, mark], os.environ))
    while not stop:
        supervisor.tick()
        time.sleep(0.02)
"""


def marked_processes(mark: str) -> list[int]:
    """The living processes that have this word on their command line."""
    pids = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if mark in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            pids.append(process.pid)
    return pids


@pytest.fixture
def mark() -> Iterator[str]:
    word = f"mark-{uuid.uuid4().hex}"
    yield word
    for pid in marked_processes(word):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def supervising(tmp_path: Path, mark: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Another process that supervises two children with one grandchild each."""
    popen = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path), mark, FAMILY])
    wait_until(lambda: len(marked_processes(mark)) == 5)
    yield popen
    popen.kill()
    popen.wait()


def python_child(name: str, code: str, *args: str) -> Child:
    return Child(name, [sys.executable, "-c", code, *args], os.environ)


def test_a_crashed_child_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    code = "import sys, time; f = open(sys.argv[1], 'a+'); f.write('x'); f.flush(); time.sleep(600 * (f.tell() - 1))"
    supervisor.add(python_child("crashing", code, str(starts)))
    tick_until(supervisor, lambda: starts.exists() and starts.read_text() == "xx")


def test_a_child_that_runs_and_does_not_answer_is_started_again(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "PROBE_EVERY_S", 0.05)
    beats, freeze_at = tmp_path / "beats", tmp_path / "freeze"
    beating = python_child("beating", BEATING, str(beats), str(freeze_at))

    def beats_on() -> bool:
        before = beats.stat().st_size
        give_up = time.monotonic() + 2
        while beats.stat().st_size == before and time.monotonic() < give_up:
            time.sleep(0.02)
        return beats.stat().st_size != before

    supervisor.add(replace(beating, ready=beats.exists, alive=beats_on))
    tick_until(supervisor, lambda: supervisor.is_ready("beating"))
    first = supervisor._all["beating"].popen
    assert first is not None
    # Probed for a while, and left alone.
    give_up = time.monotonic() + 1
    tick_until(supervisor, lambda: time.monotonic() > give_up)
    assert first.poll() is None
    freeze_at.touch()
    tick_until(supervisor, lambda: first.poll() == -signal.SIGKILL)
    freeze_at.unlink()
    tick_until(supervisor, lambda: supervisor.is_ready("beating") and beats_on())


def test_a_child_that_freezes_before_it_is_ready_is_started_again(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "PROBE_EVERY_S", 0.02)
    alive = tmp_path / "alive"
    starting = python_child("starting", "import time; time.sleep(600)")
    supervisor.add(replace(starting, ready=lambda: False, ready_timeout_s=600, alive=alive.exists))
    supervisor.tick()
    first = supervisor._all["starting"].popen
    assert first is not None
    alive.touch()
    tick_until(supervisor, lambda: supervisor._all["starting"].liveness._answered)  # type: ignore[union-attr]
    alive.unlink()
    tick_until(supervisor, lambda: first.poll() == -signal.SIGKILL)


def test_a_child_that_has_never_answered_is_starting_and_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "PROBE_EVERY_S", 0.0)
    probes: list[bool] = []

    def away() -> bool:
        probes.append(False)
        return False

    child = Liveness(away)
    wait_until(lambda: child.is_lost() or len(probes) > 2 * liveness.FAILED_PROBES)
    assert not child.is_lost()
    monkeypatch.setattr(liveness, "PROBE_EVERY_S", 600.0)
    probes.clear()
    wait_until(lambda: child.is_lost() or bool(probes))  # the last probe of its start
    wait_until(lambda: child._thread is not None and not child._thread.is_alive())
    child.note_answer()
    assert not child.is_lost()
    monkeypatch.setattr(liveness, "PROBE_EVERY_S", 0.0)
    child._next_at = 0.0
    wait_until(child.is_lost)


def test_a_probe_that_fails_itself_is_one_that_was_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "PROBE_EVERY_S", 0.0)
    child = Liveness(lambda: bool(1 / 0))
    child.note_answer()
    wait_until(child.is_lost)


def test_a_child_that_starts_slowly_is_waited_for_and_spoken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STARTING_NOTE_S", 0.05)
    told: list[str] = []
    up = tmp_path / "up"
    with Supervisor(logs=tmp_path, record=tmp_path / "processes.json", progress=told.append) as supervisor:
        supervisor.add(replace(python_child("slow", "import time; time.sleep(600)"), ready=up.exists))
        tick_until(supervisor, lambda: len(told) >= 2)
        assert all(message.startswith("slow is still starting, after ") for message in told)
        up.touch()
        tick_until(supervisor, lambda: supervisor.is_ready("slow"))
        assert told[-1] == "slow is ready."


def test_a_child_whose_starts_fail_slowly_gets_growing_pauses_and_never_stops_the_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each failure is out of the window when the next one comes, as where Ray gives up after half a minute.
    monkeypatch.setattr(processes, "FAILURE_WINDOW_S", 0.0)
    monkeypatch.setattr(processes, "FIRST_BACK_OFF_S", 0.01)
    told: list[str] = []
    with Supervisor(logs=tmp_path, record=tmp_path / "processes.json", progress=told.append) as supervisor:
        supervisor.add(replace(python_child("slow", "raise SystemExit(1)"), ready=lambda: False))
        tick_until(supervisor, lambda: len(told) == 7)
    pauses = [float(message.split("again in ")[1].split(" s.")[0]) for message in told]
    assert pauses == pytest.approx([0.01 * 2**number for number in range(7)])


def test_a_child_that_keeps_crashing_stops_the_stack_with_the_end_of_its_log(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.add(python_child("doomed", "for i in range(30): print('line', i)\nraise SystemExit(3)"))
    with pytest.raises(EmbeddedError, match="doomed ended with status 3, 5 times") as caught:
        tick_until(supervisor, lambda: False)
    assert "  line 29" in str(caught.value) and "  line 10" in str(caught.value)
    assert "  line 9\n" not in str(caught.value)


def test_a_child_that_is_not_ready_in_time_stops_the_stack(supervisor: Supervisor) -> None:
    slow = python_child("slow", "import time; print('still loading', flush=True); time.sleep(600)")
    supervisor.add(replace(slow, ready=lambda: False, ready_timeout_s=0.5))
    with pytest.raises(EmbeddedError, match=r"slow was not ready after 0\.5 s"):
        tick_until(supervisor, lambda: False)


def test_a_child_waits_for_what_it_needs_and_is_restarted_with_it(supervisor: Supervisor, tmp_path: Path) -> None:
    base_pid, user_pid = tmp_path / "base", tmp_path / "user"
    write_pid = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    base = python_child("base", write_pid, str(base_pid))
    supervisor.add(replace(python_child("user", write_pid, str(user_pid)), needs="base"))
    supervisor.add(replace(base, before_start=lambda: base_pid.unlink(missing_ok=True), ready=lambda: reads(base_pid)))
    supervisor.tick()
    supervisor.tick()
    assert not user_pid.exists()
    tick_until(supervisor, lambda: reads(user_pid))
    first_user = user_pid.read_text()
    os.kill(int(base_pid.read_text()), signal.SIGKILL)
    tick_until(supervisor, lambda: user_pid.read_text() not in ("", first_user))


def reads(path: Path) -> bool:
    return path.exists() and path.read_text() != ""


def test_a_program_that_does_not_exist_is_named(supervisor: Supervisor) -> None:
    supervisor.add(Child("missing", ["/no/such/program"], os.environ))
    with pytest.raises(EmbeddedError, match="missing cannot be started: /no/such/program"):
        supervisor.tick()


def test_the_log_of_the_run_before_is_kept(supervisor: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "quiet.log").write_text("the run before")
    supervisor.add(python_child("quiet", "import time; time.sleep(600)"))
    supervisor.tick()
    assert (tmp_path / "quiet.1.log").read_text() == "the run before"
    assert (tmp_path / "quiet.log").read_text() == ""


def test_a_child_that_ignores_the_stop_signal_is_killed(tmp_path: Path, mark: str) -> None:
    stubborn = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); open(__import__('sys').argv[2], 'w'); time.sleep(600)"
    )
    with Supervisor(logs=tmp_path, record=tmp_path / "processes.json", progress=lambda _message: None) as supervisor:
        supervisor.add(replace(python_child("stubborn", stubborn, mark, str(tmp_path / "up")), stop_grace_s=0.2))
        tick_until(supervisor, (tmp_path / "up").exists)
    assert marked_processes(mark) == []


def test_sigterm_of_the_supervisor_leaves_nothing_behind(
    supervising: "subprocess.Popen[bytes]", tmp_path: Path, mark: str
) -> None:
    supervising.terminate()
    assert supervising.wait(30) == 0
    assert marked_processes(mark) == []
    assert not (tmp_path / "processes.json").exists()


def test_grandchildren_of_a_killed_child_are_ended_before_it_is_started_again(
    supervising: "subprocess.Popen[bytes]", mark: str
) -> None:
    child = psutil.Process(supervising.pid).children()[0]
    grandchild = child.children()[0]
    child.kill()
    wait_until_ended({grandchild})
    wait_until(lambda: len(marked_processes(mark)) == 5)


def test_children_die_with_a_killed_supervisor_and_the_next_one_ends_the_rest(
    supervising: "subprocess.Popen[bytes]", tmp_path: Path, mark: str
) -> None:
    record = tmp_path / "processes.json"
    wait_until(lambda: len(json.loads(record.read_text())) == 4, timeout_s=60)
    children = psutil.Process(supervising.pid).children()
    supervising.kill()
    supervising.wait()
    wait_until_ended(set(children))
    end_recorded(record)
    wait_until(lambda: marked_processes(mark) == [])


def test_a_recorded_pid_that_now_belongs_to_somebody_else_is_left_alone(tmp_path: Path) -> None:
    record = tmp_path / "processes.json"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        created = psutil.Process(bystander.pid).create_time()
        record.write_text(json.dumps([{"pid": bystander.pid, "create_time": created - 60, "name": "python"}]))
        assert end_recorded(record) == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
