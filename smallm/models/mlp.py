"""SmaLLM v1: a multilayer perceptron over a fixed window of tokens.

The neural probabilistic language model of Bengio et al. 2003 with modern parts: the embeddings of
the window are concatenated, pass one or more hidden layers, and a softmax gives the next token.
Tied, the output layer is the embedding matrix behind a projection to its width, which makes the
largest matrix product several times smaller. With a gated activation each hidden layer is
multiplied by a second one (Shazeer 2020, arXiv 2002.05202). With a normalized output, the logits
are cosines of the hidden state and the output rows, times one scale: a temperature, which training
finds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smallm.models.activations import GATED, Activation
from smallm.models.output import initialize_output, scaled_cosines
from smallm.settings import ModelSettings


class MLP(nn.Module):
    """Logits of the next token from a window of token ids."""

    reads_sequences = False

    def __init__(self, settings: ModelSettings, vocabulary: int) -> None:
        super().__init__()
        width, hidden = settings.embedding, settings.hidden
        inputs = [settings.window * width, *[hidden] * (settings.depth - 1)]
        self.reach = settings.window
        self.dropout = settings.dropout
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(nn.Linear(size, hidden) for size in inputs)
        gated = settings.activation in GATED
        self.activations = nn.ModuleList(Activation(settings.activation) for _ in inputs)
        self.gates = nn.ModuleList(nn.Linear(size, hidden) for size in inputs if gated)
        self.projection = nn.Linear(hidden, width, bias=False) if settings.tied else None
        self.output = None if settings.tied else nn.Linear(hidden, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.empty(vocabulary))
        self.cosines = settings.normalized_output
        # The scale is exp(log_scale), which stays positive; shape (1,), as replicates are stacked.
        self.log_scale = nn.Parameter(torch.empty(1)) if settings.learns_temperature else None

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draws all weights from the generator.

        Hidden layers keep the variance of their input.
        """
        self.embedding.weight.normal_(std=self.embedding.embedding_dim**-0.5, generator=generator)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            layer.weight.normal_(std=(2 / layer.in_features) ** 0.5, generator=generator)
            layer.bias.zero_()
        for gate in self.gates:
            assert isinstance(gate, nn.Linear)
            gate.weight.normal_(std=gate.in_features**-0.5, generator=generator)
            gate.bias.zero_()
        initialize_output(
            (self.projection, self.output),
            self.log_scale,
            cosines=self.cosines,
            width=self._rows().shape[1],
            generator=generator,
        )
        self.bias.zero_()

    def forward(self, windows: Tensor) -> Tensor:
        """Logits (batch, vocabulary) from ids (batch, window), the oldest first."""
        x = self.embedding(windows).flatten(1)  # (batch, window * embedding)
        gates = self.gates or [None] * len(self.layers)
        for layer, activation, gate in zip(self.layers, self.activations, gates, strict=True):
            hidden = activation(layer(x))  # (batch, hidden)
            x = F.dropout(hidden if gate is None else hidden * gate(x), self.dropout, self.training)
        if self.projection is not None:
            x = self.projection(x)  # (batch, embedding)
        if self.cosines:
            return scaled_cosines(x, self._rows(), self.log_scale, self.bias)
        return F.linear(x, self._rows(), self.bias)

    def _rows(self) -> Tensor:
        """The output matrix, a row for each id: (vocabulary, embedding) or (vocabulary, hidden)."""
        return self.embedding.weight if self.output is None else self.output.weight
