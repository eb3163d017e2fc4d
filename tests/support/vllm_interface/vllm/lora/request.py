"""What zhub's plugin uses of ``vllm/lora/request.py``, as of vLLM 0.11: the fields that a resolver gives."""

from dataclasses import dataclass


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
