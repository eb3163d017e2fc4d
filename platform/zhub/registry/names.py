"""The names of models: versions, checkpoints, aliases, experts, and auto; the alias that ``auto`` follows; and what the
Hugging Face hub calls a model and a commit of it."""

import re

VERSION_NAME = re.compile(r"(?P<project>[a-z0-9_-]+)\.(?P<expert>[a-z0-9_-]+)@v(?P<number>[1-9][0-9]{0,8})")


CHECKPOINT_NAME = re.compile(
    r"(?P<project>[a-z0-9_-]+)\.(?P<expert>[a-z0-9_-]+)@(?P<job>ftjob-[0-9a-f]{32}):step-(?P<step>0|[1-9][0-9]{0,8})"
)


ALIAS_NAME = re.compile(r"(?P<project>[a-z0-9_-]+)\.(?P<expert>[a-z0-9_-]+)@(?P<alias>[a-z][a-z0-9_-]*)")


EXPERT_NAME = re.compile(r"(?P<project>[a-z0-9_-]+)\.(?P<expert>[a-z0-9_-]+)")

OF_ORGANIZATION = re.compile(r"(?P<organization>[a-z0-9_-]+)\.(?P<name>[a-z0-9_-]+\.[a-z0-9_-]+(?:@[^\s.]+)?)")
"""What another organisation has, by its name there: ``acme.main.support@prod``."""


AUTO = "auto"


PROD = "prod"


HUB_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_-][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[0-9a-f]{40}")
