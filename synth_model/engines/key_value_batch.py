"""Keys and values of a batch of sequences, in buffers that are as long as the longest of them can become.

The library's own cache grows by concatenation, which copies all keys and values at every token; here a token is written
where it belongs and attention reads a view. A batch is filled row by row, each sequence aligned to the same last
column, so that a prompt is computed alone, without padding and masks, and then all rows get their next tokens together:

    row 0   p p p p p p | c c c          p  a token of the prompt
    row 1   0 0 0 p p p | c c c          c  a token of the completion
    row 2   0 0 p p p p | c c c          0  zeros, masked

A row that is finished makes room for the last one, so the rows in use stay next to each other.

Cost: a copy of one row for each one that is finished. Layers with a sliding window keep what is outside of it too;
their masks see to it that it is not attended to. Not done here: layers that keep another state than keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Keys and values of one sequence, one pair a layer, each of shape (heads, tokens, head dimension).
KeyValues = Sequence[tuple["torch.Tensor", "torch.Tensor"]]


@dataclass(kw_only=True, slots=True)
class _Window:
    """Which part of the buffers the model reads and writes: rows, first column, and the column behind the last."""

    rows: slice
    start: int
    stop: int


class KeyValueLayer:
    """One layer's buffers, as the library's cache asks for them (``transformers.cache_utils.CacheLayerMixin``).

    Args:
        num_rows: Sequences.
        num_columns: Tokens of each.
        window: Where the next tokens go; shared by all layers, and moved between two calls of the model.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    is_initialized = True
    supports_early_init = False

    def __init__(self, *, num_rows: int, num_columns: int, window: _Window) -> None:
        self._shape = (num_rows, num_columns)
        self._window = window
        # Made by the first states, which tell heads and dimensions; float tensors from then on.
        self.keys: Any = None
        self.values: Any = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new keys and values behind the window; returns views of all from its start on.

        Shapes (rows of the window, heads, tokens, head dimension), for the results with the tokens before.
        """
        window = self._window
        stop = window.stop + key_states.shape[2]
        self.allocate(key_states, value_states)
        self.keys[window.rows, :, window.stop : stop] = key_states
        self.values[window.rows, :, window.stop : stop] = value_states
        return self.keys[window.rows, :, window.start : stop], self.values[window.rows, :, window.start : stop]

    def allocate(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Makes the buffers, full of zeros, when they are not there: heads, head dimension and dtype as given.

        What is masked must be a number all the same: a weight of zero times NaN is NaN.
        """
        if self.keys is None:
            num_rows, num_columns = self._shape
            self.keys, self.values = (
                states.new_zeros((num_rows, states.shape[-3], num_columns, states.shape[-1]))
                for states in (key_states, value_states)
            )

    def get_seq_length(self) -> int:
        """Tokens in the window."""
        return self._window.stop - self._window.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that are attended to, the new ones included, and how many before them are not kept."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Most tokens of a sequence."""
        return self._shape[1]


class KeyValueBatch:
    """The buffers of all layers, and where each row's sequence begins.

    Args:
        num_layers: Layers of the model.
        num_rows: Sequences.
        num_prompt_columns: Tokens of the longest prompt.
        num_columns: Tokens of the longest prompt and of its completion.
    """

    def __init__(self, *, num_layers: int, num_rows: int, num_prompt_columns: int, num_columns: int) -> None:
        from transformers.cache_utils import Cache, CacheLayerMixin

        # A subclass would have to be defined where the library is imported, inside of a function.
        CacheLayerMixin.register(KeyValueLayer)
        self._window = _Window(rows=slice(0, 0), start=0, stop=0)
        self._layers = [
            KeyValueLayer(num_rows=num_rows, num_columns=num_columns, window=self._window) for _ in range(num_layers)
        ]
        self._num_prompt_columns = num_prompt_columns
        self._starts: list[int] = []
        self._num_new = 0
        # What the model takes as ``past_key_values``.
        self.cache: Any = Cache(layers=self._layers)

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return len(self._starts)

    def add_row(self, *, num_prompt_tokens: int, known: KeyValues = ()) -> None:
        """Opens the next row and points the window at it: the model may then compute what is not known of the prompt.

        Args:
            num_prompt_tokens: Tokens of its prompt.
            known: Keys and values of its first tokens; none when empty.
        """
        row, start = self.num_rows, self._num_prompt_columns - num_prompt_tokens
        self._starts.append(start)
        num_known = known[0][0].shape[1] if known else 0
        for layer, (keys, values) in zip(self._layers, known, strict=bool(known)):
            layer.allocate(keys, values)
            layer.keys[row, :, start : start + num_known] = keys
            layer.values[row, :, start : start + num_known] = values
        self._set_window(rows=slice(row, row + 1), start=start, stop=start + num_known)

    def next_column(self) -> torch.Tensor:
        """Points the window at all rows, for one new token each; to be called before each call of the model.

        Returns:
            The attention mask up to the new tokens, int64, shape (rows, columns).
        """
        import torch

        stop = self._num_prompt_columns + self._num_new
        self._set_window(rows=slice(0, self.num_rows), start=min(self._starts), stop=stop)
        self._num_new += 1
        columns = torch.arange(self._window.start, stop + 1)
        return (columns >= torch.tensor(self._starts)[:, None]).long()

    def row(self, row: int, *, num_tokens: int) -> KeyValues:
        """Views of the keys and values of a row's first tokens."""
        columns = slice(self._starts[row], self._starts[row] + num_tokens)
        return [(layer.keys[row, :, columns], layer.values[row, :, columns]) for layer in self._filled_layers()]

    def drop_row(self, row: int) -> None:
        """Takes a row out of use; the last row moves to its place."""
        last = self.num_rows - 1
        if row != last:
            columns = slice(self._starts[last], self._num_prompt_columns + self._num_new)
            for layer in self._filled_layers():
                for buffer in (layer.keys, layer.values):
                    buffer[row, :, : columns.start] = 0
                    buffer[row, :, columns] = buffer[last, :, columns]
            self._starts[row] = self._starts[last]
        self._starts.pop()

    def _filled_layers(self) -> list[KeyValueLayer]:
        assert all(layer.keys is not None for layer in self._layers), "no prompt has been computed"
        return self._layers

    def _set_window(self, *, rows: slice, start: int, stop: int) -> None:
        self._window.rows, self._window.start, self._window.stop = rows, start, stop
