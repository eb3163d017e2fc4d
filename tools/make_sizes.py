"""Writes docs/sizes.md: what bases of known shapes take, from their config.json alone."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from zhub.cli.output import percent, size
from zhub.registry.model_sizes import GPUS, HOSTS, USABLE, USES, ModelSizes, least
from zhub_workers.compute.sizes import ROW_TOKENS, sizes_of
from zhub_workers.model.base_model import model_of_config

ROOT = Path(__file__).parents[1]
# Of tools/model_shapes/*.json, some with the rank of their basis.
SHAPES: tuple[tuple[str, int | None], ...] = (
    ("Qwen2.5-0.5B", None),
    ("Llama-3-8B", None),
    ("Llama-3-8B", 512),
    ("Llama-3-70B", None),
    ("Llama-3-70B", 512),
    ("Mixtral-8x7B", None),
    ("GPT-OSS-20B", None),
)

INTRODUCTION = f"""\
# Sizes

What a base takes on disk and in memory, counted on the shapes that its `config.json` gives. `tools/make_sizes.py`
writes this page; a test holds it against the code, and others hold the code against what real tensors take. For another
model, before it is added:

```sh
zhub base-models size my-model/config.json
```

Of a base that is too large for all of its singular directions, experts move the leading ones (`zhub base-models add
--rank 512`, [0042](decisions/0042-leading-directions.md)): a basis, and what it takes beside the weights, shrinks with
the rank.

- **Disk**: the files of the weights, and the basis: U, s and V of every matrix that experts adapt, in float32. A worker
  keeps both in its cache, and the store has them too: on one machine that is twice.
- **To decompose** takes the memory of one matrix: weights are read from their files one at a time
  ([0030](decisions/0030-sizes.md)).
- **To train** takes the weights in float32, the square factor of each matrix, the weights of one expert beside the
  base's, and a batch.
- **To serve** takes the weights, the square factors, and the keys and values of the answers.
- A batch takes half of the memory that is free, and at least one row, here of {ROW_TOKENS:,} tokens, prompt and answer.
  What a backward keeps of it is an estimate, up to a half more or less; all else is counted exactly.
- **Beside a GPU** the weights go through the memory of the host while they are loaded.
- A machine is counted with {100 * USABLE:.0f} % of its memory. One device holds the whole base: nothing is divided.
- A GB is 10⁹ bytes.
"""
QUANTISED = """\
The released files of GPT-OSS-20B are quantised, and zhub takes no such: its numbers are of the weights in bfloat16.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "sizes.md")
    output: Path = parser.parse_args().output
    output.write_text(page(counted()))


def counted() -> dict[str, ModelSizes]:
    """The sizes of SHAPES, by what the page calls them."""
    return {
        name if rank is None else f"{name}, rank {rank}": sizes_of(*model_of_config(config_of(name)), rank=rank)
        for name, rank in SHAPES
    }


def config_of(name: str) -> Path:
    return ROOT / "tools" / "model_shapes" / f"{name}.json"


def page(counted: dict[str, ModelSizes]) -> str:
    parts = [INTRODUCTION, "## The models\n", models(counted)]
    for use in USES:
        parts += [f"## To {use}\n", needs(counted, use)]
    return "\n".join([*parts, QUANTISED])


def models(counted: dict[str, ModelSizes]) -> str:
    rows = [
        (
            name,
            f"{sizes.parameters / 1e9:.2f} B",
            f"{sizes.matrices:,}",
            percent(sizes.adapted_parameters / sizes.parameters),
            f"{sizes.multipliers:,}",
            size(4 * sizes.multipliers),
            size(sizes.checkpoint_bytes),
            size(sizes.weights_bytes),
            size(sizes.basis_bytes),
        )
        for name, sizes in counted.items()
    ]
    columns = ("", "Parameters", "Matrices", "Adapted", "z", "An expert", "Files", "Loaded", "Basis")
    return table(columns, rows)


def needs(counted: dict[str, ModelSizes], use: str) -> str:
    rows = []
    for name, sizes in counted.items():
        need = sizes.needs[use]  # type: ignore[index]
        rows.append(
            (
                name,
                size(need.disk_bytes),
                size(need.device_bytes),
                size(need.loading_bytes),
                least(GPUS, need.device_bytes) or "none",
                least(HOSTS, need.device_bytes) or "none",
            )
        )
    return table(("", "Disk", "Memory", "Host beside a GPU", "Least GPU", "Least host without a GPU"), rows)


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" if index == 0 else "---:" for index in range(len(columns))), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    main()
