"""The dialect's ``metadata``: pairs by which a user finds what is the user's again."""

from typing import Annotated

from pydantic import Field

# As many and as long as the dialect has them.
Metadata = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    Field(max_length=16),
]
