"""``zhub whoami``."""

from zhub.cli.connection import DataDirOption, JsonOption, connect
from zhub.cli.output import facts, put, show_json


def whoami(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show whom your key stands for, where, and what it may do."""
    with connect(data_dir) as client:
        me, url = client.me(), client.base_url
    if as_json:
        return show_json(me)
    user = me.user
    role = "-" if user is None else user.role
    if user is not None and user.project_role is not None:
        role = f"{role}; {user.project_role} in the project"
    pairs = [
        ("url", url),
        ("user", "nobody's key" if user is None else user.email or user.name),
        ("role", role),
        ("organization", "-" if me.organization is None else me.organization.name),
        ("project", "-" if me.project is None else me.project.name),
        ("key", me.key_id or "-"),
        ("may", ", ".join(me.scopes) or "nothing"),
    ]
    put(facts(pairs))
