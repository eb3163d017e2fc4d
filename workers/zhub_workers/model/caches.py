"""What a model keeps of the tokens that it has read: keys and values of each row, and states of recurrent layers."""

import sys
from typing import Any

from torch import Tensor
from transformers import DynamicCache


def new_cache(model: Any) -> DynamicCache:
    """An empty cache, of the model's own class where its architecture comes with one, as MiniMax does."""
    modeling = sys.modules[type(model).__module__]
    for kind in vars(modeling).values():
        if isinstance(kind, type) and issubclass(kind, DynamicCache) and kind.__module__ == modeling.__name__:
            return kind()
    return DynamicCache(config=model.config)


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep these rows of the cache, in this order; a row may be taken several times."""
    # Not batch_select_indices, which layers with recurrent states lack, or have for their keys and values alone.
    cache.reorder_cache(rows)
    states = getattr(cache, "linear_cache", [])  # MiniMax keeps them beside the layers
    for index, state in enumerate(states):
        if isinstance(state, Tensor):
            states[index] = state[rows]
