"""SmaLLM v2: a small decoder-only transformer.

The transformer of Vaswani et al. 2017 with the parts that help small models: rotary positions
(Su et al. 2021), RMS norms before each part (Zhang & Sennrich 2019) and on queries and keys
(Henry et al. 2020), grouped queries (Ainslie et al. 2023), and gated activations (Shazeer 2020).
Each layer looks at the last `window` tokens (Beltagy et al. 2020), and never over the id that opens
a document, so a text of any length has one well-defined probability, in however many pieces it is
read. As positions are relative, nothing else tells where in a text a token stands.

Shapes: b sequences, t new tokens, s tokens that can be seen, h heads, g key heads, d width of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smallm.models.activations import GATED, Activation
from smallm.models.output import initialize_output, scaled_cosines
from smallm.settings import ModelSettings
from smallm.tokens import END_ID

BASE_WIDTH = 128  # at which learning rates are meant: see smallm.optimizers
ROTARY_BASE = 10_000.0
LARGEST_LOGIT = 15.0  # logits are capped softly (Gemma 2): a sure mistake costs no more than this
BIGRAM_FACTORS = (36_313, 27_191)  # spread pairs of ids evenly over the rows of their table


class KeyValueCache(Protocol):
    """Keys and values of the tokens before, as transformers keeps them."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, /) -> object:
        """Adds those of new tokens (b, g, t, d) to a layer; gives all of them, (b, g, s, d)."""


class Transformer(nn.Module):
    """Logits of the next token after each token of some sequences."""

    reads_sequences = True

    def __init__(self, settings: ModelSettings, vocabulary: int) -> None:
        super().__init__()
        width = settings.embedding
        self.window = settings.window
        self.heads = settings.heads
        self.dropout = settings.dropout
        self.embedding = nn.Embedding(vocabulary, width)
        self.bigrams = nn.Embedding(settings.bigrams, width) if settings.bigrams else None
        self.layers = nn.ModuleList(Layer(settings, number) for number in range(settings.depth))
        self.projection = nn.Linear(width, width, bias=False) if settings.tied else None
        self.output = None if settings.tied else nn.Linear(width, vocabulary, bias=False)
        self.cosines = settings.normalized_output
        self.log_scale = nn.Parameter(torch.empty(1)) if settings.learns_temperature else None

    @property
    def reach(self) -> int:
        """Number of tokens, itself included, that the logits after a token depend on."""
        return len(self.layers) * (self.window - 1) + 1 + (self.bigrams is not None)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draws all weights from the generator.

        What adds to the residual stream starts at zero: every layer starts as the identity.
        """
        self.embedding.weight.normal_(std=BASE_WIDTH**-0.5, generator=generator)
        if self.bigrams is not None:
            self.bigrams.weight.zero_()
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.initialize(generator)
        initialize_output(
            (self.projection, self.output),
            self.log_scale,
            cosines=self.cosines,
            width=self.embedding.embedding_dim,
            generator=generator,
        )

    def forward(
        self,
        ids: Tensor,
        sight: Sight | None = None,
        cache: KeyValueCache | None = None,
        *,
        keep: int = 0,
    ) -> Tensor:
        """Logits (b, t, vocabulary) after each of the ids (b, t), or only after the last `keep`.

        The ids follow those whose keys and values are in the cache, and `sight` tells what they
        see of them; by default the ids are all there is.
        """
        sight = sight or sight_of(ids, window=self.window)
        x = self._embedded(ids, sight.before)
        rotation = rotation_at(sight.places, x.shape[2] // self.heads)
        for layer in self.layers:
            x = layer(x, rotation, sight.visible[:, None], cache)
        return self._logits(x[:, -keep:])

    def _embedded(self, ids: Tensor, before: Tensor) -> Tensor:
        x = self.embedding(ids)
        if self.bigrams is not None:
            first, second = BIGRAM_FACTORS
            rows = (before * first ^ ids * second) % self.bigrams.num_embeddings
            x = x + self.bigrams(rows)
        return F.dropout(normalized(x), self.dropout, self.training)

    def _logits(self, x: Tensor) -> Tensor:
        x = normalized(x)
        if self.projection is not None:
            x = self.projection(x)
        rows = self.embedding.weight if self.output is None else self.output.weight
        if self.cosines:
            return scaled_cosines(x, rows, self.log_scale, None)  # the scale bounds them
        logits = F.linear(x, rows) * (BASE_WIDTH / rows.shape[1])
        return LARGEST_LOGIT * torch.tanh(logits / LARGEST_LOGIT)


class Layer(nn.Module):
    """Attention, then a perceptron, each added to what it reads."""

    def __init__(self, settings: ModelSettings, number: int) -> None:
        super().__init__()
        self.dropout = settings.dropout
        self.attention = Attention(settings, number)
        self.perceptron = Perceptron(settings)

    def initialize(self, generator: torch.Generator | None) -> None:
        """Draws the weights."""
        self.attention.initialize(generator)
        self.perceptron.initialize(generator)

    def forward(
        self, x: Tensor, rotation: Tensor, visible: Tensor, cache: KeyValueCache | None
    ) -> Tensor:
        """(b, t, width) to the same shape; `visible` is (b or 1, 1, t, s)."""
        x = x + self._dropped(self.attention(normalized(x), rotation, visible, cache))
        return x + self._dropped(self.perceptron(normalized(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Attention(nn.Module):
    """Grouped queries over the visible tokens; queries and keys are normalized, then rotated."""

    stacked = False
    """Whether it trains under torch's vmap, where torch's own attention goes one by one."""

    def __init__(self, settings: ModelSettings, number: int) -> None:
        super().__init__()
        width = settings.embedding
        self.number = number
        self.heads = settings.heads
        self.key_heads = settings.kv_heads or settings.heads
        head = width // self.heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, self.key_heads * head, bias=False)
        self.value = nn.Linear(width, self.key_heads * head, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.sharpness = nn.Parameter(torch.empty(self.heads))

    def initialize(self, generator: torch.Generator | None) -> None:
        """Draws the weights."""
        for layer in (self.query, self.key, self.value):
            layer.weight.normal_(std=layer.in_features**-0.5, generator=generator)
        self.output.weight.zero_()
        self.sharpness.fill_(1.0)

    def forward(
        self, x: Tensor, rotation: Tensor, visible: Tensor, cache: KeyValueCache | None
    ) -> Tensor:
        """(b, t, width) to the same shape; computed in fp32, unless it trains in bf16 on a CPU."""
        query = self.turned(self.query(x), self.heads, rotation)
        key = self.turned(self.key(x), self.key_heads, rotation)
        value = heads_of(self.value(x), self.key_heads)
        query = query * self.sharpness[:, None, None]
        half_on_cpu = value.dtype == torch.bfloat16 and x.device.type == "cpu"
        with torch.autocast(x.device.type, enabled=False):
            if self.training and cache is None and (self.stacked or half_on_cpu):
                value = value if half_on_cpu else value.float()
                mixed = written_attention(query, key, value, visible)
            else:
                mixed = self._attention(query, key, value.float(), visible, cache)
        merged: Tensor = self.output(mixed.transpose(1, 2).flatten(2).to(x.dtype))
        return merged

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Tensor,
        cache: KeyValueCache | None,
    ) -> Tensor:
        if cache is not None:
            key, value = cache.update(key, value, self.number)  # type: ignore[misc]
        shared = self.key_heads < self.heads
        mixed: Tensor = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, enable_gqa=shared
        )
        return mixed

    def turned(self, x: Tensor, heads: int, rotation: Tensor) -> Tensor:
        """Queries or keys (b, t, heads * d), normalized and rotated, as (b, heads, t, d)."""
        return rotated(normalized(heads_of(x, heads).float()), rotation)


def written_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Attention (b, h, t, d) in the precision of the values (b, g, s, d), written out.

    It trains short sequences on a CPU in bf16 in about half the time of torch's own attention in
    fp32, whose way back is slower still in bf16; weights are rounded to 8 bits then. And it is
    made of parts that torch's vmap joins for all stacked replicates.
    """
    kind, heads = value.dtype, (-1, query.shape[1] // key.shape[1])
    queries = (query * query.shape[-1] ** -0.5).to(kind).unflatten(1, heads)  # (b, g, h / g, t, d)
    unseen = torch.zeros_like(visible, dtype=kind).masked_fill(~visible, -torch.inf)
    products = queries @ key.to(kind)[:, :, None].mT + unseen[:, None]
    mixed: Tensor = products.softmax(-1) @ value[:, :, None]
    return mixed.flatten(1, 2)


class Perceptron(nn.Module):
    """One hidden layer; gated activations multiply it by a second one."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width, hidden = settings.embedding, settings.hidden
        gated = settings.activation in GATED
        self.activation = Activation(settings.activation)
        self.hidden = nn.Linear(width, hidden, bias=False)
        self.gated = nn.Linear(width, hidden, bias=False) if gated else None
        self.output = nn.Linear(hidden, width, bias=False)

    def initialize(self, generator: torch.Generator | None) -> None:
        """Draws the weights."""
        for layer in (self.hidden, self.gated):
            if layer is not None:
                layer.weight.normal_(std=layer.in_features**-0.5, generator=generator)
        self.output.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, width) to the same shape."""
        hidden = self.activation(self.hidden(x))
        if self.gated is not None:
            hidden = hidden * self.gated(x)
        result: Tensor = self.output(hidden)
        return result


@dataclass(frozen=True)
class Sight:
    """What some new tokens see of the text that they end."""

    places: Tensor
    """(b, t), the place of each in its text."""
    visible: Tensor
    """(b, t, s), bool: which tokens of the text each of them sees."""
    before: Tensor
    """(b, t), the id before each, or the opening one."""


def sight_of(
    text: Tensor,
    *,
    window: int,
    new: int | None = None,
    present: Tensor | None = None,
) -> Sight:
    """What the last `new` tokens of texts (b, s) see; by default all are new.

    A token sees itself and the `window` - 1 before it, back to the id that opens its document.
    Those that are not `present` (b, s), such as padding or bytes inside an unknown word, take no
    place, and nothing but they themselves sees them.
    """
    columns = torch.arange(text.shape[1], device=text.device)
    document = (text == END_ID).cumsum(1)
    if present is None:
        places = columns.expand_as(text)
        last = columns - 1
    else:
        places = present.cumsum(1) - 1
        last = F.pad(torch.where(present, columns, -1).cummax(1).values, (1, 0), value=-1)[:, :-1]
    new = text.shape[1] if new is None else new
    first = text.shape[1] - new
    distance = places[:, first:, None] - places[:, None]  # (b, t, s)
    same = columns[first:, None] == columns
    visible = (distance < window) & (document[:, first:, None] == document[:, None])
    visible = visible & (columns[first:, None] >= columns)
    if present is not None:
        visible = visible & present[:, None]
    last = last.expand_as(text)
    before = text.gather(1, last.clamp_min(0))
    opens = (last < 0) | (document.gather(1, last.clamp_min(0)) != document)
    before = torch.where(opens, END_ID, before)
    return Sight(places[:, first:], visible | same, before[:, first:])


def normalized(x: Tensor) -> Tensor:
    """The vectors of the last dimension with a root mean square of one."""
    result: Tensor = F.rms_norm(x, x.shape[-1:])
    return result


def rotation_at(places: Tensor, width: int) -> Tensor:
    """Cosines and sines of the angles at some places (b, t): (2, b, 1, t, width / 2)."""
    steps = torch.arange(0, width, 2, device=places.device, dtype=torch.float32) / width
    angles = places[:, None, :, None].float() * torch.pow(ROTARY_BASE, -steps)
    return torch.stack([angles.cos(), angles.sin()])


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns each pair of a vector (b, h, t, d) by the angle of its place."""
    cosine, sine = rotation[0], rotation[1]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(b, t, heads * d) to (b, heads, t, d)."""
    apart: Tensor = x.unflatten(2, (heads, -1))
    return apart.transpose(1, 2)
