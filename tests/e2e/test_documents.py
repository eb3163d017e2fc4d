"""Every command of README and guides, in order, in one empty directory, against a real stack."""

import contextlib
import http.server
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from documents import Command, commands
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from zhub.cli.database_operations import bootstrap
from zhub.client.credentials import Credentials, write_credentials

pytestmark = [
    pytest.mark.ray,
    # A document leaves it to the end of the program to close a file.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]

TIMEOUT_S = 180
# A training as short as can be, whatever the document leaves to the defaults.
SHORT = {"n_steps": 2, "batch_size": 8, "eval_samples": 20, "max_new_tokens": 16}
# What is trained through the openai client is promoted later because it is better: it has to have learnt.
ENOUGH = SHORT | {"n_steps": 12, "batch_size": 16}
METHOD = re.compile(r'("reinforcement":\s*\{\s*)(?="grader")')


def test_the_commands_of_all_documents_run_in_order(reader: "Reader") -> None:
    for command in commands():
        if command.reason_not_to_run is None:
            reader.type(command)


SHIPPED = Path(__file__).parents[2] / "workers" / "zhub_workers" / "shipped_base"


@dataclass
class Reader:
    """Somebody who types what the documents say, in a project of their own."""

    directory: Path
    client: openai.OpenAI
    receiver_url: str
    database_url: str
    """Of the operator, who is told to have it at hand."""
    namespace: dict[str, Any] = field(default_factory=dict)

    def type(self, command: Command) -> None:
        text = self._filled_in(command.text)
        if command.language == "python":
            # A reader sees the warnings of other libraries, and goes on.
            with contextlib.chdir(self.directory), warnings.catch_warnings(action="ignore"):
                exec(compile(text, command.place, "exec"), self.namespace)
            return
        environment = {
            "ZHUB_API_URL": str(self.client.base_url),
            "ZHUB_API_KEY": self.client.api_key,
            "ZHUB_DATABASE_URL": self.database_url,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/bin:/bin",
            "COLUMNS": "200",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command.place}: {text}\n{done.stdout}{done.stderr}"

    def _filled_in(self, text: str) -> str:
        """The command with what a reader puts in place of ``…``, and with a short training."""
        for placeholder, value in self._values().items():
            if placeholder in text:
                text = text.replace(placeholder, value())
        # A few-shot search has no batches.
        short = {name: value for name, value in SHORT.items() if name != "batch_size" or "few_shot" not in text}
        settings = "".join(f" --set {name}={value}" for name, value in short.items())
        for command in ("zhub submit", "zhub schedules add", "zhub releases classifier"):
            text = text.replace(command, command + settings) if text.startswith(command) else text
        text, shortened = METHOD.subn(rf'\1"hyperparameters": {ENOUGH}, ', text)
        assert shortened or ".jobs.create(" not in text, f"this would train as long as by default:\n{text}"
        return text

    def _values(self) -> dict[str, Callable[[], str]]:
        return {
            "…/credentials.json": lambda: str(self.directory / "credentials.json"),
            "https://ci.example.com/": lambda: self.receiver_url,
            "ftjob-…": lambda: self.client.fine_tuning.jobs.list(limit=1).data[0].id,
            "whe-…": self._endpoint,
            "key-…": self._newest_key,
            "zhub-invitation_…": lambda: str(self._invite("bob@acme.org")["token"]),
            "chatcmpl-…": lambda: self.client.chat.completions.list(limit=1).data[0].id,
            "whd-…": lambda: str(self._ask(f"/webhook_endpoints/{self._endpoint()}/deliveries")["data"][0]["id"]),
            "./my-model": lambda: str(SHIPPED),
            "./my-moe": self._moe,
        }

    def _moe(self) -> str:
        """A small mixture-of-experts model of random weights, with the tokenizer of the shipped base."""
        directory = self.directory / "moe"
        tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
        shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 256}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
        ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        MixtralForCausalLM(MixtralConfig(**shape, **heads, **ids)).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return str(directory)

    def _endpoint(self) -> str:
        return str(self._ask("/webhook_endpoints")["data"][0]["id"])

    def _newest_key(self) -> str:
        project_id = self._ask("/me")["project"]["id"]
        return str(self._ask(f"/organization/projects/{project_id}/api_keys?limit=1")["data"][0]["id"])

    def _invite(self, email: str) -> Any:
        return self.client.post("/organization/invites", body={"email": email, "role": "developer"}, cast_to=object)

    def _ask(self, path: str) -> Any:
        return self.client.get(path, cast_to=object)


class _Accept(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def receiver_url() -> Iterator[str]:
    """Where webhooks are accepted."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Accept) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def reader(stack: Any, tmp_path: Path, receiver_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader in a new project of the stack. What was scheduled and queued in it is gone afterwards."""
    scheduler = psutil.Process(stack.pid_of("zhub.scheduler")).environ()
    key = bootstrap(scheduler["ZHUB_DATABASE_URL"], scheduler["ZHUB_SECRET_KEY"], "readers", "default")
    base_url = str(stack.client.base_url)
    write_credentials(tmp_path, Credentials(base_url.rstrip("/").removesuffix("/v1"), key))
    monkeypatch.chdir(tmp_path)
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        yield Reader(tmp_path, client, receiver_url, scheduler["ZHUB_DATABASE_URL"])
        for schedule in client.get("/schedules", cast_to=dict[str, Any])["data"]:
            client.delete(f"/schedules/{schedule['id']}", cast_to=object)
        for job in client.fine_tuning.jobs.list(limit=100):
            if job.status not in ("succeeded", "failed", "cancelled"):
                client.fine_tuning.jobs.cancel(job.id)
