"""What a model keeps inside, as a server tells it: attention, words, and how it learned."""

from __future__ import annotations

from functools import cached_property

from smallm.attention_maps import attention_maps
from smallm.embeddings import Words, embedded_words, neighbors
from smallm.errors import SmallmError
from smallm.predictors import Predictor
from smallm.serving.protocol import Json, RequestError


class Inside:
    """Looks into a predictor; attention is asked for in its thread, the words in any."""

    def __init__(self, predictor: Predictor, words: Json | None, learned: Json | None) -> None:
        self.predictor = predictor
        self.words = words
        self.learned = learned

    def attention(self, prompt: str, layer: int | None) -> Json:
        """The heads of a layer over a prompt; RequestError for a model without attention."""
        try:
            maps = attention_maps(self.predictor, prompt)
        except SmallmError as error:
            raise RequestError(str(error), param="prompt") from None
        layers = len(maps.weights)
        if layer is not None and layer > layers:
            raise RequestError(
                f"layer is {layer}: {self.predictor.name} has {layers}", param="layer"
            )
        layer = layer or layers
        heads = maps.weights[layer - 1].double().numpy().round(4).tolist()
        return {"tokens": list(maps.tokens), "layers": layers, "layer": layer, "heads": heads}

    def neighbors(self, word: str, k: int) -> Json:
        """The k words nearest to a word by cosine; RequestError for one that is not known."""
        try:
            found = neighbors(self._every_word, word, count=k)
        except SmallmError as error:
            raise RequestError(str(error), param="word") from None
        return {
            "word": word,
            "neighbors": [{"word": name, "cosine": cosine} for name, cosine in found],
        }

    def word_map(self) -> Json:
        """The words in the plane; RequestError where no search has placed them."""
        if self.words is None:
            raise RequestError(
                f"{self.predictor.name}: has no map of its words: a search makes one for its "
                "champion, and `smallm plot embeddings` draws one of any model",
                status=404,
                param="model",
            )
        return self.words

    def learning_curves(self) -> Json:
        """How the model and the others of its search learned; RequestError where none is kept."""
        if self.learned is None:
            raise RequestError(
                f"{self.predictor.name}: holds no learning curves: a search keeps those of its "
                "trials with its champion, `smallm train` those of each model",
                status=404,
                param="model",
            )
        return self.learned

    @cached_property
    def _every_word(self) -> Words:
        return embedded_words(self.predictor)
