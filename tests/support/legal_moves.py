"""The table of moves of ``zhub.states``, held against every statement that changes a job in a test's database."""

import json

import psycopg
from psycopg import sql

from zhub import states

_FUNCTION = """
CREATE FUNCTION check_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (({moves})::jsonb -> OLD.state) ? NEW.state AND current_query() NOT LIKE '%%/* any move */%%' THEN
        RAISE 'a job went from % to %, which zhub.states does not allow: %', OLD.state, NEW.state, current_query();
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER check_move BEFORE UPDATE OF state ON jobs
   FOR EACH ROW WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION check_move();
"""


def forbid_illegal_moves(owner_url: str) -> None:
    """Have the database refuse a change of a job's state that ``states.TRANSITIONS`` does not list.

    Statements of tests that put a job where they need it say so by the comment ``/* any move */``.
    """
    with psycopg.connect(owner_url, autocommit=True) as connection:
        connection.execute(sql.SQL(_FUNCTION).format(moves=sql.Literal(json.dumps(states.TRANSITIONS))))
