"""The champion as an MLflow model: prompts in, the most probable next tokens out.

MLflow copies this file beside the model and runs it to load one ("models from code"), so nothing
is pickled.
"""

from __future__ import annotations

from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class NextTokens(PythonModel):
    """A Hugging Face folder behind MLflow's `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads model and tokenizer; `model_config={"k": …}` sets how many tokens come back."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        import smallm.models  # noqa: F401  (makes the Auto classes know SmaLLM)

        folder = context.artifacts["model"]
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.k = int(context.model_config["k"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[str],
        params: dict[str, Any] | None = None,
    ) -> list[list[dict[str, object]]]:
        """Gives for each prompt its k most probable next tokens, the most probable first."""
        return [self._next_tokens(prompt) for prompt in model_input]

    def _next_tokens(self, prompt: str) -> list[dict[str, object]]:
        import torch

        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            probabilities = self.model(ids).logits[0, -1].float().softmax(-1)
        best = probabilities.topk(min(self.k, len(probabilities)))
        return [
            {"token": self.tokenizer.decode([token]), "probability": probability}
            for probability, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


set_model(NextTokens())
