"""SmaLLM v1: a multilayer perceptron over a fixed window of tokens.

The neural probabilistic language model of Bengio et al. 2003 with modern parts: the embeddings of
the window are concatenated, pass one or more hidden layers, and a softmax gives the next token.
Tied, the output layer is the embedding matrix behind a projection to its width, which makes the
largest matrix product several times smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smallm.models.activations import ACTIVATIONS
from smallm.settings import ModelSettings


class MLP(nn.Module):
    """Logits of the next token from a window of token ids."""

    def __init__(self, settings: ModelSettings, vocabulary: int) -> None:
        super().__init__()
        width, hidden = settings.embedding, settings.hidden
        inputs = [settings.window * width, *[hidden] * (settings.depth - 1)]
        self.activation = ACTIVATIONS[settings.activation]
        self.dropout = settings.dropout
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(nn.Linear(size, hidden) for size in inputs)
        self.projection = nn.Linear(hidden, width, bias=False) if settings.tied else None
        self.output = None if settings.tied else nn.Linear(hidden, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.empty(vocabulary))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draws all weights from the generator.

        Hidden layers keep the variance of their input; the last matrix before the logits starts
        at zero, so that training starts from the uniform distribution.
        """
        self.embedding.weight.normal_(std=self.embedding.embedding_dim**-0.5, generator=generator)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            layer.weight.normal_(std=(2 / layer.in_features) ** 0.5, generator=generator)
            layer.bias.zero_()
        for last in (self.projection, self.output):
            if last is not None:
                last.weight.zero_()
        self.bias.zero_()

    def forward(self, windows: Tensor) -> Tensor:
        """Logits (batch, vocabulary) from ids (batch, window), the oldest first."""
        x = self.embedding(windows).flatten(1)  # (batch, window * embedding)
        for layer in self.layers:
            x = self.activation(layer(x))  # (batch, hidden)
            x = F.dropout(x, self.dropout, self.training)
        if self.projection is None:
            assert self.output is not None
            return F.linear(x, self.output.weight, self.bias)
        return F.linear(self.projection(x), self.embedding.weight, self.bias)
