"""The plugin for vLLM: names of experts become LoRAs on disk, by digest, within bounds, and never an error."""

import asyncio
import hashlib
import inspect
import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[3]
PLUGIN = ROOT / "platform" / "zhub-vllm"
INTERFACE = ROOT / "tests" / "support" / "vllm_interface"
HUB_BASE = "acme/base"
ENVIRONMENT = {"ZHUB_API_URL": "http://zhub", "ZHUB_API_KEY": "zhub-key"}


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin, and the interface of vLLM that it was written against."""
    for path in (PLUGIN, INTERFACE):
        monkeypatch.syspath_prepend(str(path))


class Zhub:
    """An API that exports LoRAs: by name the digest of the version that it names now."""

    def __init__(self) -> None:
        self.versions = {"team.sums@prod": "a" * 64, "team.sums@v2": "b" * 64}
        self.base_path = HUB_BASE
        self.size = 100
        self.facts: dict[str, Any] = {"rank": 8, "dora": False}
        self.statuses = ["succeeded"]
        self.harm: Callable[[bytes], bytes] = lambda content: content
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.headers["authorization"] != "Bearer zhub-key":
            return httpx.Response(401, json={"error": {"message": "No such key."}})
        if request.method == "POST":
            asked = json.loads(request.content)
            if asked["model"] not in self.versions:
                return httpx.Response(404, json={"error": {"message": f"No such model: '{asked['model']}'."}})
            return httpx.Response(200, json=self.export(self.versions[asked["model"]]))
        _, _, path = request.url.path.partition("/v1/expert_exports/exp-")
        digest, _, name = path.partition("/files/")
        if name:
            return httpx.Response(200, content=self.harm(self.files(digest)[name]))
        return httpx.Response(200, json=self.export(digest))

    def files(self, digest: str) -> dict[str, bytes]:
        config = json.dumps({"base_model_name_or_path": self.base_path}).encode()
        return {"adapter_config.json": config, "adapter_model.safetensors": digest[:1].encode() * self.size}

    def export(self, digest: str) -> dict[str, Any]:
        files = [
            {"name": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in self.files(digest).items()
        ]
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return {
            "id": f"exp-{digest}", "status": status, "model": "team.sums@v1", "digest": digest, "base_model": "tiny",
            "files": files, "facts": self.facts, "error": {"message": "The base is gone."},
        }  # fmt: skip


@pytest.fixture
def zhub() -> Zhub:
    return Zhub()


@pytest.fixture
def resolve(zhub: Zhub, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Ask a resolver with these settings; each call is a process of its own unless one is given."""
    from zhub_vllm.loras import Loras
    from zhub_vllm.resolver import ZhubResolver
    from zhub_vllm.settings import Settings

    def ask(name: str, base: str = HUB_BASE, resolver: Any = None, **environment: str) -> Any:
        return asyncio.run((resolver or made(**environment)).resolve_lora(base, name))

    def made(**environment: str) -> Any:
        settings = Settings.of(ENVIRONMENT | {"ZHUB_LORA_CACHE_DIR": str(tmp_path / "cache")} | environment)
        assert settings is not None
        loras = Loras(settings, transport=httpx.MockTransport(zhub), sleep=lambda _seconds: None)
        return ZhubResolver(loras)

    ask.made = made  # type: ignore[attr-defined]
    yield ask


def kept(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").iterdir()}


def test_the_class_is_as_vllms_interface_has_it() -> None:
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver

    from zhub_vllm.resolver import ZhubResolver

    assert issubclass(ZhubResolver, LoRAResolver) and not inspect.isabstract(ZhubResolver)
    own, theirs = ZhubResolver.resolve_lora, LoRAResolver.resolve_lora
    assert inspect.iscoroutinefunction(own)
    assert inspect.signature(own) == inspect.signature(theirs)
    assert list(inspect.signature(LoRARequest).parameters)[:3] == ["lora_name", "lora_int_id", "lora_path"]


def test_the_entry_point_registers_it_where_zhub_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vllm.lora.resolver import LoRAResolverRegistry

    from zhub_vllm.resolver import ZhubResolver

    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    (entry,) = project["entry-points"]["vllm.general_plugins"].values()
    module, _, function = entry.partition(":")
    register = getattr(__import__(module), function)
    monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {})
    register()
    assert LoRAResolverRegistry.resolvers == {}
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    register()
    assert isinstance(LoRAResolverRegistry.resolvers["zhub"], ZhubResolver)


def test_an_expert_becomes_a_lora_on_disk(zhub: Zhub, resolve: Any, tmp_path: Path) -> None:
    zhub.statuses = ["queued", "running", "succeeded"]
    found = resolve("team.sums@prod", ZHUB_LORA_RANK="8")
    directory = Path(found.lora_path)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == zhub.files("a" * 64)
    assert kept(tmp_path) == {f"{'a' * 64}-r8"}
    assert json.loads(zhub.requests[0].content) == {"model": "team.sums@prod", "format": "lora", "rank": 8}


def test_what_is_there_is_not_fetched_again(zhub: Zhub, resolve: Any) -> None:
    first = resolve("team.sums@prod")
    before = len(zhub.requests)
    assert resolve("team.sums@prod") == first
    assert [request.method for request in zhub.requests[before:]] == ["POST"]


def test_new_weights_have_a_new_name_number_and_directory(zhub: Zhub, resolve: Any) -> None:
    before = resolve("team.sums@prod")
    zhub.versions["team.sums@prod"] = "c" * 64
    after, other_rank = resolve("team.sums@prod"), resolve("team.sums@prod", ZHUB_LORA_RANK="8")
    for field in ("lora_name", "lora_int_id", "lora_path"):
        assert len({getattr(found, field) for found in (before, after, other_rank)}) == 3
    assert all(0 < found.lora_int_id < 2**63 for found in (before, after))


def test_names_that_are_no_experts_are_left_to_others(zhub: Zhub, resolve: Any) -> None:
    for name in ("sql-lora", "../../etc", "acme/lora", "team.sums", "Team.sums@prod", ""):
        assert resolve(name) is None
    assert zhub.requests == []


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("team.none@prod", {}, "No such model: 'team.none@prod'"),
        ("team.sums@prod", {"statuses": ["failed"]}, "its export failed: The base is gone."),
        ("team.sums@prod", {"facts": {"dora": True}}, "a DoRA"),
        ("team.sums@prod", {"base_path": "acme/other"}, "set ZHUB_LORA_BASE=tiny"),
        ("team.sums@prod", {"harm": lambda content: content[:-1] + b"?"}, "expected"),
        ("team.sums@prod", {"harm": lambda content: content + b"?" * 9}, "expected"),
    ],
)
def test_what_goes_wrong_is_a_warning_and_nothing_is_left(
    zhub: Zhub, resolve: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, change: Any, told: str
) -> None:
    for field, value in change.items():
        setattr(zhub, field, value)
    assert resolve(name) is None
    assert told in caplog.text
    left = kept(tmp_path) if (tmp_path / "cache").exists() else set()
    assert not {name for name in left if name.startswith(".")}
    assert "harm" not in change or left == set()


def test_an_unreachable_zhub_and_a_wrong_key_are_warnings(
    resolve: Any, zhub: Zhub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve("team.sums@prod", ZHUB_API_KEY="other") is None and "No such key." in caplog.text

    def refuse(_zhub: Zhub, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    monkeypatch.setattr(Zhub, "__call__", refuse)
    assert resolve("team.sums@prod") is None and "does not answer: refused" in caplog.text


def test_a_base_that_zhub_calls_otherwise_is_named_by_the_operator(
    zhub: Zhub, resolve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve("team.sums@prod", "/models/base", ZHUB_LORA_BASE="tiny") is not None
    assert resolve("team.sums@prod", "/models/base", ZHUB_LORA_BASE="large") is None
    assert "it belongs to the base 'tiny', and this server has 'large'" in caplog.text


def test_the_cache_is_bounded_and_keeps_what_is_in_use(
    zhub: Zhub, resolve: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zhub.size = 1000
    bound = {"ZHUB_LORA_CACHE_BYTES": "2500"}
    resolve("team.sums@prod", **bound)
    resolve("team.sums@v2", **bound)
    zhub.versions["team.sums@v3"] = "c" * 64
    later = resolve.made(**bound)
    assert resolve("team.sums@v2", resolver=later) is not None
    assert resolve("team.sums@v3", resolver=later) is not None
    assert kept(tmp_path) == {f"{'b' * 64}-r64", f"{'c' * 64}-r64"}, "the one that nobody uses has gone"
    zhub.versions["team.sums@v4"] = "d" * 64
    assert resolve("team.sums@v4", resolver=later) is None and "those in use fill the cache" in caplog.text
    assert kept(tmp_path) == {f"{'b' * 64}-r64", f"{'c' * 64}-r64"}
