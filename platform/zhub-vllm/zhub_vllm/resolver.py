"""The resolver, as vLLM's interface has it (``vllm/lora/resolver.py``). The one module that imports vLLM."""

import asyncio
import logging
import os
import re

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from zhub_vllm.loras import Loras, NotResolvedError
from zhub_vllm.settings import Settings

NAME = "zhub"
MODEL = re.compile(r"[a-z0-9_-]+\.[a-z0-9_-]+@[a-z0-9_-]+")  # project.expert@v3, project.expert@prod

log = logging.getLogger("vllm.zhub")


class ZhubResolver(LoRAResolver):
    """Names of experts become LoRAs on disk. Whatever goes wrong is a warning, and None: vLLM then asks others."""

    def __init__(self, loras: Loras) -> None:
        self._loras = loras

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The LoRA of an expert; None where it is not the name of one, or there is none."""
        if not MODEL.fullmatch(lora_name):
            return None
        try:
            lora = await asyncio.to_thread(self._loras.get, base_model_name, lora_name)
        except NotResolvedError as exc:
            log.warning("zhub gives no LoRA for '%s': %s", lora_name, exc, extra={"lora_name": lora_name})
            return None
        except Exception:
            # vLLM would answer with an error of its own, and other resolvers would not be asked.
            log.exception("The LoRA of '%s' cannot be resolved", lora_name, extra={"lora_name": lora_name})
            return None
        return LoRARequest(lora_name=lora.name, lora_int_id=lora.number, lora_path=str(lora.directory))


def register_resolver() -> None:
    """Register the resolver, where the environment says which zhub it asks."""
    settings = Settings.of(os.environ)
    if settings is None:
        log.warning("ZHUB_API_URL and ZHUB_API_KEY are not set: no LoRA is resolved.", extra={"resolver": NAME})
        return
    LoRAResolverRegistry.register_resolver(NAME, ZhubResolver(Loras(settings)))
