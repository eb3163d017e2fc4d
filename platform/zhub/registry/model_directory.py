"""The files of a model's directory that belong to it, checked before anything is uploaded."""

import json
from dataclasses import dataclass
from pathlib import Path

from zhub.errors import InvalidRequestError, UnsupportedModelError

# The API accepts these and refuses the others: zhub.base_models has the same two lists and the last word.
FILE_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".md")
REFUSED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")

CHAT_TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class ModelFiles:
    """What to upload, by the name it gets, and the names of what stays behind."""

    uploads: dict[str, Path]
    skipped: list[str]


def model_files(directory: Path, chat_template: Path | None) -> ModelFiles:
    """Choose the files of a Hugging Face directory; ``chat_template`` takes the place of the model's own.

    Raises:
        InvalidRequestError: something that every base model needs is missing.
        UnsupportedModelError: the weights are pickled.
    """
    if not directory.is_dir():
        found = "a file" if directory.exists() else "nothing"
        raise InvalidRequestError(f"{directory}: expected the directory of a model, found {found}.", param="path")
    uploads = {path.name: path for path in sorted(directory.iterdir()) if _belongs(path)}
    skipped = [path.name for path in sorted(directory.iterdir()) if path.name not in uploads]
    if chat_template is not None:
        if not chat_template.is_file():
            raise InvalidRequestError(f"{chat_template}: expected a file with a chat template, found none.")
        uploads[CHAT_TEMPLATE_FILE] = chat_template
    _check_complete(directory, uploads, skipped)
    return ModelFiles(uploads, skipped)


def _belongs(path: Path) -> bool:
    return path.is_file() and path.suffix in FILE_SUFFIXES and not path.name.startswith(".")


def _check_complete(directory: Path, uploads: dict[str, Path], skipped: list[str]) -> None:
    if "config.json" not in uploads:
        raise InvalidRequestError(
            f"{directory}: no config.json. Give a directory as `save_pretrained` of transformers writes it."
        )
    if not any(name.endswith(".safetensors") for name in uploads):
        pickled = [name for name in skipped if Path(name).suffix in REFUSED_SUFFIXES]
        if pickled:
            raise UnsupportedModelError(
                f"{directory}: the weights are pickled ({', '.join(pickled)}), a format that can run code when it is "
                "loaded. Save the model with `save_pretrained(..., safe_serialization=True)` and add that."
            )
        raise InvalidRequestError(f"{directory}: no weights: expected at least one .safetensors file.")
    if not any(name in TOKENIZER_FILES or name.endswith(".tiktoken") for name in uploads):
        raise InvalidRequestError(
            f"{directory}: no tokenizer: expected {', '.join(TOKENIZER_FILES)} or a .tiktoken file. "
            "Save it beside the model with `tokenizer.save_pretrained`."
        )
    if CHAT_TEMPLATE_FILE not in uploads and not _has_template(uploads.get("tokenizer_config.json")):
        raise InvalidRequestError(
            f"{directory}: no chat template, so zhub cannot tell how this model separates question and answer. "
            f"Put a Jinja template in {CHAT_TEMPLATE_FILE} beside the model, or give one with --chat-template FILE. "
            "The simplest: {% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
        )


def _has_template(tokenizer_config: Path | None) -> bool:
    if tokenizer_config is None:
        return False
    try:
        found = json.loads(tokenizer_config.read_text("utf-8"))
    except ValueError as exc:
        raise InvalidRequestError(f"{tokenizer_config}: not JSON: {exc}") from exc
    return isinstance(found, dict) and bool(found.get("chat_template"))
