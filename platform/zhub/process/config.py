"""Settings of a zhub process: one URL for each service that it uses, read from the environment once in ``main()``."""

import hmac
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from zhub.errors import InvalidRequestError
from zhub.process.logs import LogFormat

MIN_SECRET_CHARACTERS = 32


class Settings(BaseSettings):
    """Every setting is an environment variable with the prefix ``ZHUB_``, e.g. ``ZHUB_DATABASE_URL``."""

    model_config = SettingsConfigDict(env_prefix="ZHUB_", frozen=True)

    database_url: str
    """PostgreSQL. The API's login is a member of ``zhub_app``, the scheduler's and the agent's of ``zhub_system``."""
    store_url: str
    """``file:///directory`` (created by the first write; its parent must exist) or
    ``s3://bucket/prefix?endpoint_url=…&region=…``."""
    redis_url: str | None = None
    """Hints, and the count of requests a minute; without it every wait is a poll, and each API process counts alone."""
    secret_key: SecretStr = SecretStr("")
    """Keys the hashes of API keys and the secrets that sign webhooks: the same for API and scheduler."""
    former_secret_keys: list[SecretStr] = []
    """Earlier secret keys: API keys whose hashes they key stay valid, and are hashed anew when they are used."""
    operator_token: SecretStr = SecretStr("")
    """With it as its key, the API makes and suspends organisations: how the first one is made. Empty: nobody's."""
    oidc_issuer: str | None = None
    """The OpenID provider by which people log in: its issuer, letter by letter as its discovery says."""
    oidc_client_id: str | None = None
    """What zhub is called there: a public client with the device authorization grant."""
    login_lasts_h: float = Field(default=12.0, gt=0, le=8760)
    """For how long the key is valid that a login gives."""
    webhook_allow_private: bool = False
    """Whether webhooks may go to private addresses and over http: only where holders of keys may reach that network
    anyway."""

    host: str = "127.0.0.1"
    port: int = 8460
    serving_url: str = "http://127.0.0.1:8461"
    """Where the API reaches the Ray Serve app."""
    serving_token: SecretStr = SecretStr("")
    """What the API sends with its requests to the Serve app, which answers no other: the same for API and agent."""
    serving_host: str = "127.0.0.1"
    serving_port: int = 8461
    serving_replicas: int = Field(default=1, ge=1)
    """How many replicas the Serve app has, at least."""
    serving_max_replicas: int | None = Field(default=None, ge=1)
    """How many it may have while many requests wait; None: no more than at least."""
    serving_cpus: float = Field(default=0.0, ge=0)
    """What Ray reserves for each replica. A replica that reserves nothing shares its node's cores with the workers."""

    serving_memory_share: float = Field(default=0.75, gt=0, le=1)
    """Of its device's memory, what a replica may take for all its bases; less where several share a device."""
    serving_cache_share: float = Field(default=0.125, gt=0, lt=1)
    """Of its device's memory, what keys and values of answers on one base may take; a part of the former."""

    ray_address: str | None = None
    cluster: str = Field(default="default", pattern="^[a-z0-9][a-z0-9-]{0,62}$")
    """Name of the workers that an agent drives; agents of several names may share one Ray cluster."""
    slots: int = Field(default=1, ge=1)
    """How many workers with torch the agent keeps, where Ray has nodes for them."""
    worker_cpus: float = Field(default=0.0, ge=0)
    worker_gpus: float | None = Field(default=None, ge=0, le=1)
    """What Ray reserves for each; None: the GPUs of the whole Ray cluster are divided between the workers."""
    worker_memory_gib: float = Field(default=0.0, ge=0)
    worker_resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom resources of Ray's that each worker takes: ``{"fast-disk": 1}``."""
    worker_labels: dict[str, str] = {}
    """The nodes that workers may be on, a label selector of Ray's: ``{"ray.io/accelerator-type": "H100"}``."""
    serve: bool = True
    """Whether the agent runs the Serve app; of several agents on one Ray cluster only one should."""
    jobs_per_worker: int = Field(default=4, ge=1)
    """How many small training jobs on one base a worker runs together; 1: each alone, bit for bit reproducible."""
    device: str | None = None
    """``cpu``, ``cuda``, …; None takes CUDA where there is one."""
    cache_dir: Path = Path("/tmp/zhub-cache")
    """Where workers keep fetched files; safe to delete."""
    metric_sinks: list[Annotated[str, Field(pattern="^(tensorboard|mlflow|wandb)(:.+)?$")]] = []
    """Where else workers send metrics of trainings, each by the extra of its name:
    ``["tensorboard:/var/runs", "mlflow:https://host", "wandb:project"]``."""
    ready_file: Path | None = None
    """There while serving answers, written by the agent."""
    alive_file: Path | None = None
    """A file of its own for the scheduler and for the agent: its time of modification is the time until which the
    process vouches that all of its loops go on. One that is past belongs to a process that is frozen."""

    lease_s: float = Field(default=60.0, gt=1)
    poll_s: float = Field(default=0.5, gt=0)
    stall_s: float = Field(default=600.0, gt=0)
    """An attempt without progress for this long is stopped."""
    leader_lease_s: float = Field(default=15.0, gt=1)

    logs_kept_days: int = Field(default=90, ge=1, le=36500)
    """How long the scheduler keeps the logs of an attempt that has ended."""

    grader_runs: int = Field(default=8, ge=1, le=64)
    """How many graders an API process tries at a time for ``…/graders/run`` and ``…/graders/validate``."""
    grader_runs_per_org: int = Field(default=2, ge=1)
    streams: int = Field(default=200, ge=1)
    """How many streams of events and logs an API process serves; each asks the database once a second."""
    streams_per_org: int = Field(default=64, ge=1)
    answers: int = Field(default=1024, ge=1)
    """How many answers of models an API process passes on at a time, each on a connection to serving."""
    answers_per_org: int = Field(default=256, ge=1)
    requests_per_org: int = Field(default=24, ge=1)
    """How many of an API process's 40 threads requests of one organisation may hold."""

    log_format: LogFormat = "text"
    """``json``: one JSON object a line."""
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Where the scheduler and the agent answer Prometheus; None: nowhere. The API does so on its own port."""
    drain_s: float = Field(default=0.0, ge=0, le=300)
    """How long a stopped API reports at ``/readyz`` that it drains before it stops accepting, for a load balancer."""

    @model_validator(mode="after")
    def _know_the_gpus_of_labelled_nodes(self) -> Self:
        if self.worker_labels and self.worker_gpus is None:
            raise ValueError(
                "ZHUB_WORKER_LABELS needs ZHUB_WORKER_GPUS: how many GPUs the nodes with these labels have is not "
                "known. Say what each worker takes, 0 to 1."
            )
        return self

    @model_validator(mode="after")
    def _know_the_client_of_the_issuer(self) -> Self:
        if (self.oidc_issuer is None) != (self.oidc_client_id is None):
            raise ValueError("ZHUB_OIDC_ISSUER and ZHUB_OIDC_CLIENT_ID belong together: set both, or none.")
        return self

    @model_validator(mode="after")
    def _have_a_long_operator_token(self) -> Self:
        token = self.operator_token.get_secret_value()
        if token and len(token) < MIN_SECRET_CHARACTERS:
            raise ValueError(
                f"ZHUB_OPERATOR_TOKEN must have at least {MIN_SECRET_CHARACTERS} characters: it makes organisations. "
                "Make one with `openssl rand -hex 32`."
            )
        return self

    @model_validator(mode="after")
    def _leave_memory_for_weights(self) -> Self:
        if self.serving_cache_share >= self.serving_memory_share:
            raise ValueError(
                f"ZHUB_SERVING_CACHE_SHARE ({self.serving_cache_share:g}) must be less than ZHUB_SERVING_MEMORY_SHARE "
                f"({self.serving_memory_share:g}), which it is a part of: a base's weights need the rest."
            )
        return self

    def require_serving_token(self) -> str:
        """The token of the Serve app. Raises InvalidRequestError where it is missing or short."""
        token = self.serving_token.get_secret_value()
        if len(token) < MIN_SECRET_CHARACTERS:
            raise InvalidRequestError(
                f"ZHUB_SERVING_TOKEN must have at least {MIN_SECRET_CHARACTERS} characters; with it the API proves "
                "itself to serving. Make one with `openssl rand -hex 32`, and give it to API and agent."
            )
        return token

    def is_operator_token(self, token: str) -> bool:
        """Whether it is the operator's token, in a time that does not tell how much of it is right."""
        expected = self.operator_token.get_secret_value()
        return bool(expected) and hmac.compare_digest(expected.encode(), token.encode("utf-8", "surrogatepass"))

    def require_secret_key(self) -> str:
        """The secret key. Raises InvalidRequestError where it is missing or short."""
        secret_key = self.secret_key.get_secret_value()
        if len(secret_key) < MIN_SECRET_CHARACTERS:
            raise InvalidRequestError(
                f"ZHUB_SECRET_KEY must have at least {MIN_SECRET_CHARACTERS} characters; it keys the hashes of API "
                "keys and the secrets of webhooks. Make one with `openssl rand -hex 32`, keep it, and give it to API "
                "and scheduler."
            )
        return secret_key
