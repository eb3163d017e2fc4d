"""docker-compose.yml on a real docker: images are built, every container comes up, the whole path goes through them.

It takes minutes and gigabytes, so it runs only with ``--run-docker``. ``POSTGRES_IMAGE`` and ``REDIS_IMAGE`` choose
other images than those that the compose file names.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from suites import GRADER

from zhub.client import Client
from zhub.demo.task_families import sample_rows

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
SHIPPED_BASE = ROOT / "workers" / "zhub_workers" / "shipped_base"
SERVICES = {"postgres", "redis", "s3", "api", "scheduler", "agent", "ray-worker"}
RECEIVER = """
import http.server, json
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print(json.loads(self.rfile.read(int(self.headers["Content-Length"]))).get("type", "something"))
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("", 8000), Receiver).serve_forever()
"""
UP_TIMEOUT_S = 1800  # the first time it installs torch and Ray


@dataclass(frozen=True)
class Compose:
    """A project of its own: names, port, passwords, volumes."""

    project: str
    port: int
    env_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __call__(self, *arguments: str, timeout_s: float = 300) -> str:
        options = ("--project-name", self.project, "--env-file", str(self.env_file))
        env = os.environ | {
            "ZHUB_PORT": str(self.port),
            "ZHUB_API_IMAGE": "zhub-api:test",
            "ZHUB_WORKER_IMAGE": "zhub-worker:test",
            "S3_IMAGE": "zhub-s3:test",
            "ZHUB_WEBHOOK_ALLOW_PRIVATE": "1",  # the receiver of the tests has no name in public
        }
        return docker("compose", *options, *arguments, env=env, timeout_s=timeout_s)

    def up(self, *options: str) -> None:
        self("up", "--detach", "--wait", *options, timeout_s=UP_TIMEOUT_S)

    def containers(self) -> dict[str, dict[str, Any]]:
        """What docker knows about each running service."""
        ids = self("ps", "--quiet").split()
        found = json.loads(docker("inspect", *ids))
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in found}


def docker(*arguments: str, env: dict[str, str] | None = None, timeout_s: float = 60) -> str:
    """Run docker in the repository's root and return what it prints; what it complains about is the failure."""
    done = subprocess.run(
        ["docker", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def missing_part() -> str | None:
    """Why compose cannot come up on this machine, or None."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    for question in (["info"], ["compose", "version"]):
        if (complaint := _complaint(question, timeout_s=30)) is not None:
            return f"`docker {' '.join(question)}` fails: {complaint}"
    images = (
        "python:3.11-slim",
        "debian:trixie-slim",
        os.environ.get("POSTGRES_IMAGE", "postgres:17"),
        os.environ.get("REDIS_IMAGE", "redis:7"),
    )
    for image in images:
        if _complaint(["image", "inspect", image], timeout_s=30) is None:
            continue
        if (complaint := _complaint(["pull", "--quiet", image], timeout_s=600)) is not None:
            return f"the image {image} cannot be had: {complaint}"
    return None


def _complaint(arguments: Sequence[str], *, timeout_s: float) -> str | None:
    try:
        asked = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} s"
    return None if asked.returncode == 0 else asked.stderr.strip()[-300:]


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    reason = missing_part()
    if reason is not None:
        pytest.skip(reason)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env_file = tmp_path_factory.mktemp("compose") / "env"
    subprocess.run([sys.executable, str(ROOT / "tools" / "compose_env.py"), "--file", str(env_file)], check=True)
    project = Compose(f"zhub-test-{uuid.uuid4().hex[:8]}", port, env_file)
    try:
        try:
            project.up("--build")
        except (AssertionError, subprocess.TimeoutExpired) as exc:
            exc.add_note(project("logs", "--no-color", "--tail", "60"))
            raise
        yield project
    finally:
        project("down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="module")
def client(compose: Compose) -> openai.OpenAI:
    """An openai client with the first key, made as the compose file's head says."""
    shown = compose("run", "--rm", "admin", "zhub", "db", "bootstrap", "--organization", "acme", "--operator")
    return openai.OpenAI(base_url=f"{compose.url}/v1", api_key=shown.split()[-1], max_retries=5)


@pytest.fixture(scope="module")
def expert(compose: Compose, client: openai.OpenAI, e2e: Any) -> str:
    """The model id of an expert trained in this installation."""
    with Client(compose.url, client.api_key) as zhub:
        zhub.base_models.add_directory("zhub-tiny", SHIPPED_BASE)
        zhub.base_models.wait_ready("zhub-tiny", progress=lambda _base: None)
    file_id = e2e.upload(client, sample_rows("sorting", 600, seed=7), "sorting")
    method: Any = {
        "type": "reinforcement",
        "reinforcement": {"grader": GRADER, "hyperparameters": {"n_steps": 10, "max_new_tokens": 16}},
    }
    job = client.fine_tuning.jobs.create(
        model="zhub-tiny", training_file=file_id, suffix="sorting", seed=1, method=method
    )
    job = e2e.wait_for_job(client, job.id, timeout_s=600)
    assert job.status == "succeeded", job.error
    return str(job.fine_tuned_model)


def ask(client: openai.OpenAI, model: str) -> Any:
    messages: Any = sample_rows("sorting", 1, seed=99, split="test")[0]["messages"]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=16)


def test_a_dataset_becomes_an_expert_that_answers(client: openai.OpenAI, expert: str) -> None:
    answer = ask(client, expert)
    assert answer.choices[0].message.content
    assert [chosen["name"] for chosen in answer.experts] == [expert]


def test_only_the_api_is_published_and_only_on_this_machine(compose: Compose) -> None:
    found = compose.containers()
    assert set(found) == SERVICES
    published = {name: one["NetworkSettings"]["Ports"] for name, one in found.items()}
    api = published.pop("api")
    assert [binding["HostIp"] for bindings in api.values() for binding in bindings] == ["127.0.0.1"]
    assert not any(binding for ports in published.values() for binding in ports.values())


def test_only_the_api_and_the_scheduler_are_on_a_network_with_a_way_out(compose: Compose) -> None:
    open_ones = set()
    for name, one in compose.containers().items():
        networks = json.loads(docker("network", "inspect", *one["NetworkSettings"]["Networks"]))
        if not all(network["Internal"] for network in networks):
            open_ones.add(name)
    assert open_ones == {"api", "scheduler"}


@pytest.fixture
def receiver(compose: Compose) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """The URL of a receiver of webhooks beyond the private network, and what asks for the types that came."""
    network = ("--network", f"{compose.project}_edge")
    started = docker("run", "--detach", *network, "zhub-api:test", "python", "-uIc", RECEIVER).strip()
    try:
        (found,) = json.loads(docker("inspect", started))
        address = found["NetworkSettings"]["Networks"][f"{compose.project}_edge"]["IPAddress"]
        yield f"http://{address}:8000/", lambda: docker("logs", started).split()
    finally:
        docker("rm", "--force", started)


def test_the_scheduler_sends_webhooks_to_the_world_and_no_job_gets_there(
    compose: Compose, client: openai.OpenAI, receiver: tuple[str, Callable[[], list[str]]]
) -> None:
    url, received = receiver
    with Client(compose.url, client.api_key) as zhub:
        endpoint = zhub.webhooks.create(url=url, event_types=["fine_tuning.job.succeeded"])
        tested = zhub.webhooks.test(endpoint.id, "fine_tuning.job.succeeded")
    assert tested.success and received() == ["fine_tuning.job.succeeded"]
    reach = f"from urllib.request import urlopen; urlopen('{url}', data=b'{{}}', timeout=3)"
    for name in ("agent", "ray-worker"):
        with pytest.raises(AssertionError, match="unreachable|timed out"):
            compose("exec", "--no-TTY", name, "python", "-ISc", reach)
    assert received() == ["fine_tuning.job.succeeded"]


def test_nothing_runs_as_root_and_nothing_may_become_it(compose: Compose) -> None:
    for name, one in compose.containers().items():
        processes = docker("top", one["Id"], "-eo", "pid,uid").splitlines()[1:]
        uids = {line.split()[1] for line in processes}
        assert uids and "0" not in uids, name
        assert one["HostConfig"]["CapDrop"] == ["ALL"], name
        assert one["HostConfig"]["ReadonlyRootfs"], name
        assert "no-new-privileges:true" in one["HostConfig"]["SecurityOpt"], name


def test_job_actors_do_not_know_the_database(compose: Compose) -> None:
    script = r'for p in /proc/[0-9]*; do tr "\0" "\n" < $p/cmdline | grep -q "^ray::.*Actor" && cat $p/environ; done; :'
    for name in ("agent", "ray-worker"):
        assert "ZHUB_DATABASE_URL" not in compose("exec", "--no-TTY", name, "sh", "-c", script)


def test_the_agent_is_started_again_and_adopts_what_ray_runs(compose: Compose, expert: str, e2e: Any) -> None:
    is_agent = r'tr "\0" " " < $p/cmdline | grep -q "^python -m zhub_workers.agent"'
    kill = f"for p in /proc/[0-9]*; do {is_agent} && kill -9 ${{p#/proc/}}; done; :"
    compose("exec", "--no-TTY", "agent", "sh", "-c", kill)
    e2e.until("a new agent", lambda: "zhub_workers.agent" in docker("top", compose.containers()["agent"]["Id"]), 60)
    e2e.until("adoption", lambda: ": adopted" in compose("logs", "--no-color", "--tail", "50", "agent"), 60)


def test_what_was_trained_outlives_every_container(compose: Compose, client: openai.OpenAI, expert: str) -> None:
    before = ask(client, expert).choices[0].message.content
    compose("down", "--timeout", "30")
    assert not compose("ps", "--quiet").split()
    compose.up()
    assert ask(client, expert).choices[0].message.content == before


def test_compose_names_the_script_to_run_when_a_password_is_missing(tmp_path: Path) -> None:
    if shutil.which("docker") is None or _complaint(["compose", "version"], timeout_s=30) is not None:
        pytest.skip("docker compose is not installed")
    empty = tmp_path / "env"
    empty.touch()
    asked = subprocess.run(
        ["docker", "compose", "--env-file", str(empty), "config"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert asked.returncode != 0
    assert "tools/compose_env.py" in asked.stderr
