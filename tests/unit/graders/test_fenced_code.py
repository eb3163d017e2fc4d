"""The code in an answer of Markdown."""

from functools import partial

import pytest
from counted_steps import counted_steps

from zhub.graders.fenced_code import code_of


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("a\n```python\nx = 1\n```\nb\n```python\ny = 2\n```", "x = 1"),
        ("```py\nx = 1", "x = 1"),
        ("```\nx = '```'\n```", "x = '```'"),
    ],
)
def test_the_first_fenced_block_is_the_code(text: str, code: str) -> None:
    assert code_of(text) == code


DEF = "def add(a, b):\n    return a + b"
DOCUMENTED = 'def add(a, b):\n    """Adds.\n\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b'


@pytest.mark.parametrize(
    "text",
    [
        f"Install it:\n```bash\npip install x\n```\nThen:\n```python\n{DEF}\n```",
        f"```bash\nls\n```\n\n```\n{DEF}\n```",
        f"```text\n3\n```\n~~~py\n{DEF}\n~~~",
        f"Here:\n```python\n{DEF}\n```\nBye".replace("\n", "\r\n"),
        f"  ```python\n  {DEF.replace(chr(10), chr(10) + '  ')}\n  ```\n",
        f"1. Here:\n\n   ```python\n   {DEF.replace(chr(10), chr(10) + '   ')}\n   ```\n",
        f"Here:\n    ```python\n    {DEF.replace(chr(10), chr(10) + '    ')}\n    ```\n",
        f"> ```python\n> {DEF.replace(chr(10), chr(10) + '> ')}\n> ```\n",
        f"```python3.11\n{DEF}\n```",
        f"```python {{linenos}}\n{DEF}\n```",
        f"```{{.python .numberLines}}\n{DEF}\n```",
        f"``` Python\n{DEF}\n```",
        f"~~~\n{DEF}\n~~~",
        f"~~~python\n{DEF}\n~~~",
        f"````python\n{DEF}\n````",
        f"<details>\n```python\n{DEF}\n```\n</details>",
    ],
)
def test_the_code_is_found_however_it_is_fenced(text: str) -> None:
    assert code_of(text) == DEF


@pytest.mark.parametrize(
    "text", [DOCUMENTED, f"```python\n{DOCUMENTED}\n```", f"So:\n\n~~~\n{DOCUMENTED}\n~~~\n```\n3\n```"]
)
def test_a_fence_in_a_text_of_the_code_ends_nothing(text: str) -> None:
    assert code_of(text) == DOCUMENTED


def test_fences_are_read_in_steps_that_grow_with_the_length_of_the_answer() -> None:
    for shape in (
        "```\n",
        "~~~\n",
        "a\n```\n",
        "    ```\n",
        "``` `\n",
        "- ```\n",
        "> ```\n",
        "- \n",
        "> ",
        "- ",
        "`",
        " ",
        "\n",
    ):
        texts = ["```\n" + shape * (length // len(shape)) for length in (2_000, 4_000)]
        once, twice = (counted_steps(partial(code_of, text), "markdown_it") for text in texts)
        assert twice <= 2.3 * once + 500, shape
