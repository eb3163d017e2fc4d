"""What the environment says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_RANK = 64
DEFAULT_CACHE_BYTES = 10 << 30
DEFAULT_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Settings:
    """See the README, where each has its variable."""

    api_url: str
    api_key: str
    base: str | None
    rank: int
    cache_dir: Path
    cache_bytes: int
    timeout_s: float

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Settings | None":
        """Those of an environment; None where it does not say where zhub is."""
        if not (environment.get("ZHUB_API_URL") and environment.get("ZHUB_API_KEY")):
            return None
        directory = environment.get("ZHUB_LORA_CACHE_DIR") or "~/.cache/zhub-vllm"
        return cls(
            api_url=environment["ZHUB_API_URL"],
            api_key=environment["ZHUB_API_KEY"],
            base=environment.get("ZHUB_LORA_BASE") or None,
            rank=int(environment.get("ZHUB_LORA_RANK") or DEFAULT_RANK),
            cache_dir=Path(directory).expanduser(),
            cache_bytes=int(environment.get("ZHUB_LORA_CACHE_BYTES") or DEFAULT_CACHE_BYTES),
            timeout_s=float(environment.get("ZHUB_LORA_TIMEOUT_S") or DEFAULT_TIMEOUT_S),
        )
