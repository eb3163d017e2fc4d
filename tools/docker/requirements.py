"""``python requirements.py EXTRA…``: what zhub with these extras needs, without zhub itself, one requirement a line."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = (project["optional-dependencies"][name] for name in sys.argv[1:])
print("\n".join([*project["dependencies"], *(requirement for extra in extras for requirement in extra)]))
