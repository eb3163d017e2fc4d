"""What zhub's plugin uses of ``vllm/lora/resolver.py``, as of vLLM 0.11: the method, and the registry."""

from abc import ABC, abstractmethod

from vllm.lora.request import LoRARequest


class LoRAResolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


class _Registry:
    def __init__(self) -> None:
        self.resolvers: dict[str, LoRAResolver] = {}

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        self.resolvers[resolver_name] = resolver


LoRAResolverRegistry = _Registry()
