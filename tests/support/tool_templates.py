"""Chat templates in the formats in which bases call tools, as short as they can be, and a tokenizer for each.

The real ones are longer; what they render of calls and of tools is the same.
"""

from collections.abc import Sequence
from importlib import resources
from typing import Any

from transformers import AutoTokenizer

SHIPPED = resources.files("zhub_workers") / "shipped_base"
END = "<|end|>"
HERMES = """
{%- if tools %}<|system|>For each function call return a json object within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}
{%- for message in messages %}<|{{ message.role }}|>
{%- if message.role == 'assistant' and message.tool_calls %}{{ message.content }}
{%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}
{%- else %}{{ message.content }}{% endif %}<|end|>
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
LLAMA = """
{%- if tools %}Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.
{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for message in messages %}<|{{ message.role }}|>
{%- if 'tool_calls' in message %}
{%- set call = message.tool_calls[0].function %}{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}
{%- else %}{{ message.content }}{% endif %}<|end|>
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
MISTRAL = """
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}
{%- if message.tool_calls is defined %}[TOOL_CALLS][
{%- for call in message.tool_calls %}{%- set function = call.function -%}
{"name": "{{ function.name }}", "arguments": {{ function.arguments | tojson }}, "id": "{{ call.id }}"}
{%- endfor %}]<|end|>
{%- else %}[INST]{{ message.content }}[/INST]{% endif %}
{%- endfor %}"""
TEMPLATES = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL}


def tool_tokenizer(template: str, added: Sequence[str] = (), *, special: bool = False) -> Any:
    """The shipped base's tokenizer with another chat template, and tokens of their own for ``added``."""
    tokenizer = AutoTokenizer.from_pretrained(str(SHIPPED))
    tokenizer.chat_template = template
    tokenizer.add_tokens(list(added), special_tokens=special)
    return tokenizer
