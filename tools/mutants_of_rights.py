"""The guards of who may do what: of roles, keys, invitations, logins, and of the audit log."""

from mutant import Mutant

KEYS, MANAGED = "platform/zhub/tenancy/keys.py", "platform/zhub/tenancy/managed_keys.py"
MEMBERS, INVITATIONS = "platform/zhub/tenancy/members.py", "platform/zhub/tenancy/invitations.py"
LOGIN, PROVIDER = "platform/zhub/tenancy/login.py", "platform/zhub/identity/provider.py"
ON_KEYS = ("tests/integration/tenancy/test_managed_keys.py",)
ON_MEMBERS = ("tests/integration/tenancy/test_members.py",)
ON_LOGIN = ("tests/integration/tenancy/test_login.py",)
ON_RIGHTS = ("tests/integration/api/test_rights.py",)

MUTANTS = (
    Mutant(
        "a key does what its owner may at that moment",
        KEYS,
        "allowed = scopes & scopes_of(",
        "allowed = scopes | scopes_of(",
        ON_RIGHTS,
    ),
    Mutant(
        "the keys of who was removed are refused",
        KEYS,
        "    if user.removed_at is not None:",
        "    if False:",
        ON_MEMBERS,
    ),
    Mutant(
        "a key of the organisation reaches no project's rows",
        KEYS,
        "else granted - frozenset(PROJECT_SCOPES)",
        "else granted",
        ("tests/integration/tenancy/test_managed_keys.py", "tests/integration/api/test_strangers.py"),
    ),
    Mutant(
        "rights in a project are asked of that project",
        "api/zhub_api/rights.py",
        "rights = scopes_in(session, caller, project_id)",
        "rights = caller.scopes",
        ON_MEMBERS,
    ),
    Mutant(
        "nobody makes a key that may do more than they may",
        MANAGED,
        "    _check_grantable(scopes, grantable)\n",
        "",
        ON_KEYS,
    ),
    Mutant(
        "only an admin changes the keys of others",
        MANAGED,
        'elif "keys:write" not in scopes_in(session, caller, row.project_id):',
        "elif False:",
        ON_KEYS,
    ),
    Mutant(
        "no rotation hands out more than its caller may do",
        MANAGED,
        "    _require_reach(session, caller, row)\n",
        "",
        ON_KEYS,
    ),
    Mutant(
        "a key is rotated once",
        MANAGED,
        "    if row.successor_id is not None:",
        "    if False:",
        ON_KEYS,
    ),
    Mutant(
        "the last owner stays",
        MEMBERS,
        "if set(owners) <= {leaving.id}:",
        "if not owners:",
        ON_MEMBERS,
    ),
    Mutant(
        "owners who leave at once wait for each other",
        MEMBERS,
        "        .order_by(User.id)\n        .with_for_update()\n",
        "        .order_by(User.id)\n",
        ON_MEMBERS,
    ),
    Mutant(
        "nobody gives a role above their own",
        MEMBERS,
        "        if role > own:",
        "        if False:",
        ON_MEMBERS,
    ),
    Mutant(
        "an invitation is accepted once",
        INVITATIONS,
        "row is None or row.accepted_at is not None or row.revoked_at is not None",
        "row is None or row.revoked_at is not None",
        ON_MEMBERS,
    ),
    Mutant(
        "an address counts where it was verified",
        PROVIDER,
        "isinstance(email, str) and verified is True",
        "isinstance(email, str)",
        ON_LOGIN,
    ),
    Mutant(
        "an ID token is for one login",
        PROVIDER,
        "or issued_at < time.time() - MAX_AGE_S - LEEWAY_S",
        "",
        ON_LOGIN,
    ),
    Mutant(
        "signatures are by a key of the provider's",
        PROVIDER,
        "return jwt.decode(id_token, self._keys(KEPT_S), algorithms=ALGORITHMS)",
        'return jwt.decode(id_token, self._keys(KEPT_S), algorithms=[*ALGORITHMS, "none"])',
        ON_LOGIN,
    ),
    Mutant(
        "who is linked is nobody else with the same address",
        LOGIN,
        "by_email = (User.email == identity.email) & User.subject.is_(None)",
        "by_email = User.email == identity.email",
        ON_LOGIN,
    ),
    Mutant(
        "a row of the audit log is kept from its owner too",
        "migrations/versions/0031_audit_log.py",
        "AFTER UPDATE OR DELETE ON",
        "AFTER INSERT ON",
        ("tests/integration/tenancy/test_audit_log.py",),
    ),
    Mutant(
        "a tenant does not end its own suspension",
        "migrations/versions/0030_people.py",
        'f"USING (true) WITH CHECK ({OPERATOR})"',
        '"USING (true) WITH CHECK (true)"',
        ("tests/integration/tenancy/test_operators.py",),
    ),
)
