"""How many tokens the prompts of a batch begin with in common: the system message and the instruction, mostly.

They are read once and copied, where a gap within a row does no harm: the rows go on after them at unequal lengths, and
are padded in between. Attention to everything that is not masked takes no notice of that. A window that is counted in
columns does, and so does a recurrent state.
"""

from collections.abc import Sequence
from os.path import commonprefix

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from zhub_workers.model.base_model import BaseModel
from zhub_workers.model.caches import new_cache

LEAST_SAVED = 64  # tokens, for which it is worth another forward


def shared_length(base: BaseModel, owned: Sequence[tuple[int, tuple[int, ...]]]) -> int:
    """The tokens that all prompts begin with, 0 where it does not pay or the base does not allow it.

    Each prompt has at least one more.

    Args:
        owned: an owner and a prompt each; what owners have in common is read once for each of them.
    """
    prompts = [prompt for _, prompt in owned]
    length = min(len(commonprefix(prompts)), min(map(len, prompts)) - 1)
    saved = saved_tokens(owned, length)
    return length if saved >= LEAST_SAVED and allows_gaps(base) else 0


def saved_tokens(owned: Sequence[tuple[int, tuple[int, ...]]], length: int) -> int:
    """How many tokens fewer are read where the first ``length`` of all prompts are read once for each owner."""
    return (len(owned) - len({owner for owner, _ in owned})) * length


def allows_gaps(base: BaseModel) -> bool:
    """Whether padding may stand between what rows have in common and the rest of them."""
    ways = base.batching
    if not (ways.together and ways.padded and ways.selected and ways.continued):
        return False
    if "position_ids" not in base.forward_arguments:  # else positions may be columns
        return False
    if getattr(base.model.config.get_text_config(), "window_size", None) is not None:  # GPT-Neo's, which no cache knows
        return False
    cache = new_cache(base.model)
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
