"""Keys and values of several texts that end in the same column, with room for the next columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

SPARE = 64  # columns that are made at once


class RoomyLayer(DynamicLayer):
    """A layer that does not copy all it holds for every new column."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes a layer without columns; the base class asks for it by this name."""
        self.hold(key_states[:, :, :0], value_states[:, :, :0], columns=0)

    def hold(self, keys: Tensor, values: Tensor, *, columns: int) -> None:
        """Takes over tensors (rows, heads, room, width), of which some columns are in use."""
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._room = (keys, values)
        self.keys, self.values = keys[:, :, :columns], values[:, :, :columns]

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds columns (rows, heads, new, width); gives all that there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        before = self.get_seq_length()
        end = before + key_states.shape[2]
        if end > self._room[0].shape[2]:
            self._room = (_widened(self.keys, end + SPARE), _widened(self.values, end + SPARE))
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, before:end] = states
        self.hold(*self._room, columns=end)
        return self.keys, self.values


def _widened(states: Tensor, columns: int) -> Tensor:
    """The same columns, then empty ones."""
    rows, heads, before, width = states.shape
    made = states.new_zeros(rows, heads, columns, width)
    made[:, :, :before] = states
    return made


def new_cache() -> Cache:
    """What a model has read of no text yet."""
    return Cache(layer_class_to_replicate=RoomyLayer)


def can_keep(model: Any) -> bool:
    """Whether a model's keys and values can be kept so: not those of recurrent layers."""
    if not model._supports_default_dynamic_cache():
        return False
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return all(isinstance(layer, DynamicLayer) for layer in layers)


def joined(parts: Sequence[tuple[Cache, Sequence[int]]], columns: int) -> Cache:
    """Chosen rows of several caches in one of the last `columns` columns.

    Rows of narrower caches begin with zeros, which are to be masked.
    """
    parts = [(cache, rows) for cache, rows in parts if rows]
    if not parts:
        return new_cache()
    layers: list[Any] = []
    for each in zip(*(cache.layers for cache, _ in parts), strict=True):
        found = [(layer, rows) for layer, (_, rows) in zip(each, parts, strict=True)]
        layers.append(_joined_layer(found, columns))
    return Cache(layers=layers)


def _joined_layer(parts: Sequence[tuple[Any, Sequence[int]]], columns: int) -> RoomyLayer:
    made = RoomyLayer()  # type: ignore[no-untyped-call]
    keys = _aligned([(layer.keys, rows) for layer, rows in parts], columns)
    values = _aligned([(layer.values, rows) for layer, rows in parts], columns)
    made.hold(keys, values, columns=columns)
    return made


def _aligned(parts: Sequence[tuple[Tensor, Sequence[int]]], columns: int) -> Tensor:
    """(rows of all parts, heads, columns + SPARE, width), each row ending before the spare ones."""
    _, heads, _, width = parts[0][0].shape
    count = sum(len(rows) for _, rows in parts)
    made = parts[0][0].new_zeros(count, heads, columns + SPARE, width)
    first = 0
    for states, rows in parts:
        kept = min(columns, states.shape[2])
        end = first + len(rows)
        made[first:end, :, columns - kept : columns] = states[
            list(rows), :, states.shape[2] - kept :
        ]
        first = end
    return made
