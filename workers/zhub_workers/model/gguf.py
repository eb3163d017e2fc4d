"""From a GGUF file to a directory as ``save_pretrained`` writes it: ``python -m zhub_workers.model.gguf FILE DIR``.

A process of its own, because whoever adds a base model imports no torch. transformers reads the file with the package
``gguf`` and gives the weights back without their quantisation; they are saved in bfloat16, half of float32's bytes.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from zhub.errors import UnsupportedModelError
from zhub_workers.model.base_model import LOAD_ERRORS

MAGIC = b"GGUF"


def convert_gguf(file: Path, directory: Path) -> None:
    """Write the model in ``file`` to ``directory``, with its tokenizer and chat template.

    Raises:
        UnsupportedModelError: no GGUF, cut short, or of an architecture or quantisation that nothing here reads.
    """
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise UnsupportedModelError(f"{file.name}: not a GGUF file: it does not begin with 'GGUF'.")
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        # In float32, because transformers keeps the weights of other types as they are packed in the file.
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).to(torch.bfloat16)
    except LOAD_ERRORS as exc:
        if isinstance(exc, NotImplementedError) or "GGMLQuantizationType" in str(exc):
            raise UnsupportedModelError(
                f"{file.name}: its weights are quantised in a way that the package gguf cannot undo: {exc}. Take "
                "another file of the model, such as one in Q8_0 or F16, or add its checkpoint with --path DIR."
            ) from exc
        raise UnsupportedModelError(
            f"{file.name}: transformers cannot read this GGUF file: {exc} Add the model's checkpoint with --path DIR."
        ) from exc
    # What was quantised in the file is so no more, and save_pretrained refuses as long as the model says otherwise.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    file, directory = map(Path, sys.argv[1:])
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        convert_gguf(file, directory)
    except UnsupportedModelError as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    main()
