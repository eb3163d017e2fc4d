"""A LoRA resolver for vLLM that gets experts from zhub. It needs neither the package ``zhub`` nor torch."""


def register() -> None:
    """The plugin, as vLLM calls it in each of its processes. Without ZHUB_API_URL and ZHUB_API_KEY it does nothing."""
    # Here, because it imports vLLM, which is there where this is called.
    from zhub_vllm.resolver import register_resolver

    register_resolver()
