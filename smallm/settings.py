"""All settings of a run: typed, validated, with one source of defaults.

The command line, the YAML files, the search space and MLflow's params are made from these fields.
Field names are unique over all groups, so a setting has one flat name everywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from smallm.errors import SmallmError, unknown_name

Model = TypeVar("Model", bound=BaseModel)

SCORED_BYTES = 65_536  # of held-out text, where models are compared and no more is asked for


class Group(BaseModel):
    """A frozen group of settings; unknown fields are errors, docstrings are the help texts."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


Location = Annotated[
    str, BeforeValidator(lambda given: os.fspath(given) if isinstance(given, Path) else given)
]
"""A path, or a URL such as s3://bucket/dumps."""


Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
]
"""Several names; a file of settings may give one without brackets."""

NOISE = ("removed", "bots", "quotes", "withdrawn")


class CorpusSettings(Group):
    """Which text, and how it is put in order."""

    source: str = "docs"
    """Where the text comes from; `smallm corpus list` shows the sources."""
    path: Location | None = None
    """File, folder or URL to read: plain files, or the dump files of the named source."""
    text_field: str = "text"
    """Column or JSON field that holds the text (.jsonl, .csv, hub)."""
    dataset: str | None = None
    """Dataset id on the Hugging Face hub, or a local dataset folder; a source has its own."""
    dataset_config: str | None = None
    """Configuration of the hub dataset, when it has several."""
    dataset_split: str = "train"
    """Split of the hub dataset to read; SmaLLM makes its own training and held-out parts."""
    categories: Names = ()
    """Keep these categories: cs.LG or cs.* (arxiv), World or 1 (news), neural* (ml-text)."""
    titles: Path | None = None
    """Keep also the articles whose titles stand in this file, one a line (ml-text)."""
    tags: Names = ()
    """Keep questions with at least one of these tags (stackoverflow)."""
    subreddits: Names = ()
    """Keep comments of these subreddits (reddit)."""
    minimum_score: int | None = None
    """Keep posts and comments with at least this score (stackoverflow, reddit)."""
    drop: Names = NOISE
    """Leave out removed comments, bots, quotes (reddit), withdrawn papers (arxiv); or none."""
    latex: Literal["keep", "normalize"] = "keep"
    """Keep LaTeX as it is written, or turn it into plain Unicode text (arxiv)."""
    max_documents: int | None = Field(default=None, ge=1)
    """Read at most this many documents."""
    order: Literal["hash", "stratified"] = "hash"
    """Place documents by content hash, or by hash inside rare-word strata (for small corpora)."""
    near_duplicate_threshold: float = Field(default=0.75, gt=0, le=1)
    """Estimated Jaccard similarity of word 5-grams from which two documents count as one."""

    @field_validator("path")
    @classmethod
    def _some_path(cls, path: str | None) -> str | None:
        if path == "":
            raise ValueError("must name a file, a folder or a URL")
        return path

    @field_validator("drop")
    @classmethod
    def _known_noise(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names == ("none",):
            return ()
        for name in names:
            if name not in NOISE:
                raise ValueError(unknown_name("noise", name, (*NOISE, "none")))
        return names

    @field_validator("source")
    @classmethod
    def _known_source(cls, name: str) -> str:
        from smallm.documents import SOURCES

        if name not in SOURCES:
            raise ValueError(unknown_name("source", name, SOURCES))
        return name


class TokenizerSettings(Group):
    """How text becomes tokens."""

    tokenizer: Literal["bpe", "words"] = "bpe"
    """Byte-level BPE, or whole words with a spelling model behind the unknown word."""
    vocabulary: int = Field(default=4096, ge=300, le=65_000)
    """Number of tokens that the model predicts."""


SEQUENCE_WINDOWS = 2  # in a training sequence: half of its tokens have a whole window before them
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"embedding": 128, "hidden": 512, "depth": 4, "heads": 4, "window": 64},
    "small": {"embedding": 256, "hidden": 1024, "depth": 6, "heads": 4, "window": 128},
    "base": {"embedding": 384, "hidden": 1536, "depth": 8, "heads": 6, "window": 256},
}
SHAPE = set(PRESETS["tiny"])  # the settings that a preset gives
ONLY = {"transformer": ("preset", "heads", "kv_heads", "bigrams")}  # what no other has


def shape_of(given: Mapping[str, Any]) -> dict[str, int]:
    """What the preset of flat settings stands for; nothing where there is none."""
    preset = given.get("preset")
    return PRESETS.get(preset, {}) if isinstance(preset, str) else {}


class ModelSettings(Group):
    """The shape of the model."""

    architecture: str = "mlp"
    """`mlp` is SmaLLM v1, a perceptron over a fixed window; `transformer` is SmaLLM v2."""
    preset: Literal["tiny", "small", "base"] | None = None
    """A transformer's shape: 0.8, 4.8 or 14.3 M parameters without embeddings; given parts win."""
    activation: str = "relu2"
    """Nonlinearity of the hidden layers. swiglu and geglu multiply each by a second one."""
    window: int = Field(default=16, ge=1, le=1024)
    """Number of preceding tokens that the model sees; in a transformer, that each layer sees."""
    embedding: int = Field(default=64, ge=1)
    """Width of the token embeddings, and of a transformer."""
    hidden: int = Field(default=384, ge=1)
    """Width of the hidden layers."""
    depth: int = Field(default=1, ge=1, le=16)
    """Number of hidden layers, or of a transformer's layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of a transformer; they share its width evenly, by an even number each."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Heads of keys and values, each shared by as many queries; null is one for each head."""
    bigrams: int = Field(default=0, ge=0)
    """Rows of a transformer's table of embeddings of pairs of tokens, placed by a hash."""
    tied: bool = True
    """Share the output layer with the embeddings, through a projection to their width."""
    normalized_output: bool = False
    """Compare the hidden state with the embeddings by cosine, times one temperature."""
    learned_temperature: bool = True
    """Train the temperature of a normalized output; else it stays the root of the width."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of hidden units switched off in training."""

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        """A preset's shape in place of the defaults; what is given beside it wins."""
        return {**shape_of(given), **given} if isinstance(given, dict) else given

    @field_validator("activation")
    @classmethod
    def _known_activation(cls, name: str) -> str:
        from smallm.models.activations import ACTIVATIONS, GATED

        if name not in ACTIVATIONS and name not in GATED:
            raise ValueError(unknown_name("activation", name, [*ACTIVATIONS, *GATED]))
        return name

    @property
    def learns_temperature(self) -> bool:
        """Whether a temperature is among the weights."""
        return self.normalized_output and self.learned_temperature

    @model_validator(mode="after")
    def _has_a_temperature(self) -> ModelSettings:
        if not self.learned_temperature and not self.normalized_output:
            raise ValueError(
                "learned_temperature is false, but plain logits have no temperature: give "
                "normalized_output true"
            )
        return self

    @model_validator(mode="after")
    def _fits_architecture(self) -> ModelSettings:
        for architecture, names in ONLY.items():
            for name in names if architecture != self.architecture else ():
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} is a setting of architecture {architecture}, not of "
                        f"{self.architecture}"
                    )
        if self.architecture != "transformer":
            return self
        if self.embedding % (2 * self.heads):
            raise ValueError(
                f"embedding {self.embedding} is no multiple of 2 * heads = {2 * self.heads}: "
                "each head has an even width"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        return self

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, name: str) -> str:
        from smallm.models import ARCHITECTURES

        if name not in ARCHITECTURES:
            raise ValueError(unknown_name("architecture", name, ARCHITECTURES))
        return name


class TrainingSettings(Group):
    """How the model is trained."""

    split_ratio: float = Field(default=0.8, gt=0, lt=1)
    """Share of the text to train on: a cut of the tape."""
    training_tokens: int = Field(default=1_000_000, ge=1)
    """Budget of each replicate, in predicted tokens."""
    batch_size: int = Field(default=1024, ge=1)
    """Predicted tokens per step."""
    learning_rate: float = Field(default=0.004, gt=0)
    """Peak learning rate of AdamW; a transformer's is that of width 128, whatever its width."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` moves the hidden matrices by Muon, and embeddings, norms and biases by AdamW."""
    muon_learning_rate: float = Field(default=0.02, gt=0)
    """Peak learning rate of Muon, for a model of any width; AdamW alone has no use for it."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay, on matrices only."""
    warmup: float = Field(default=0.02, ge=0, le=1)
    """Share of the budget over which the learning rate rises."""
    decay: float = Field(default=0.5, ge=0, le=1)
    """Share of the budget over which the learning rate falls to zero, at the end."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    loss: Literal["cross_entropy", "nll"] = "cross_entropy"
    """Cross-entropy of the logits, or in fp32 by way of their log-softmax: equal to rounding."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target's probability that the loss spreads evenly over all tokens."""
    curriculum: Literal["none", "length", "rarity", "unigram"] = "none"
    """Stages by a document's length, or its loss in a unigram model: its sum (rarity) or mean."""
    curriculum_order: Literal["easy_first", "hard_first", "random"] = "easy_first"
    """Order of a curriculum's stages; hard_first and random are its controls."""
    scheduled_sampling: float = Field(default=0.0, ge=0, le=1)
    """Share of a transformer's inputs that its own guesses replace; it rises from 0 to the end."""
    seeds: tuple[int, ...] = (42, 43, 44)
    """One replicate per seed; a seed fixes initialization, data order and dropout."""
    evaluate_at: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75, 1.0)
    """Shares of the budget at which the selection slice is scored; the last must be 1."""
    evaluation_bytes: int | None = Field(default=131_072, ge=1)
    """Score this much of the selection slice on the way; null is all of it."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of matrix products; auto: bf16 where it is faster, or fp16 on GPUs without."""
    compile: bool = False
    """Compile the model: half a minute at the start, faster steps then; needs a C++ compiler."""
    replication: Literal["auto", "stacked", "sequential"] = "auto"
    """Replicates train stacked or in turn; auto: in turn with dropout, else whichever is faster."""

    @field_validator("evaluate_at")
    @classmethod
    def _ends_at_one(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if not shares or shares[-1] != 1 or min(shares) <= 0 or list(shares) != sorted(shares):
            raise ValueError("must rise from above 0 to 1")
        return shares

    @model_validator(mode="after")
    def _levers_that_go_together(self) -> TrainingSettings:
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError(
                f"label_smoothing is {self.label_smoothing:g}, but loss {self.loss} has none: "
                "allowed is loss cross_entropy"
            )
        if self.curriculum == "none" and self.curriculum_order != "easy_first":
            raise ValueError(
                f"curriculum_order is {self.curriculum_order!r}, but there is no curriculum: give "
                "one, such as length"
            )
        if self.scheduled_sampling and self.replication == "stacked":
            raise ValueError(
                "replication is 'stacked', but with scheduled_sampling each replicate draws for "
                "itself: allowed are auto and sequential"
            )
        return self

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError("needs at least one seed, all different and not negative")
        return seeds


class Settings(Group):
    """Everything one run needs, in four groups."""

    corpus: CorpusSettings = CorpusSettings()
    tokens: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def _fits_sequences(self) -> Settings:
        length, batch = SEQUENCE_WINDOWS * self.model.window, self.training.batch_size
        if self.model.architecture == "transformer" and batch % length:
            raise ValueError(
                f"batch_size {batch} is no multiple of {length}: a transformer trains on sequences "
                f"of {SEQUENCE_WINDOWS} * window tokens"
            )
        if self.training.scheduled_sampling and self.model.architecture != "transformer":
            raise ValueError(
                f"scheduled_sampling is {self.training.scheduled_sampling:g}, but architecture "
                f"{self.model.architecture} reads no sequences: allowed is transformer"
            )
        return self

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from flat names; SmallmError names field, value and what is allowed."""
        nested: dict[str, dict[str, Any]] = {group: {} for group in cls.model_fields}
        for name, value in values.items():
            if name not in groups_of_fields():
                raise SmallmError(unknown_name("setting", name, groups_of_fields()))
            nested[groups_of_fields()[name]][name] = value
        return validated(cls, nested)

    def flat(self) -> dict[str, Any]:
        """All settings by flat name, as JSON and YAML can hold them."""
        return {
            name: value
            for group in self.model_dump(mode="json").values()
            for name, value in group.items()
        }

    def replace(self, **values: Any) -> Settings:
        """The same settings with some flat names changed, validated again."""
        return Settings.from_flat(overlaid(self.flat(), values))

    def to_yaml(self) -> str:
        """A file for `--config`, each setting with its explanation above it."""
        lines = []
        for name, value in self.flat().items():
            lines.append(f"# {fields()[name].description}")
            lines.append(f"{name}: {json.dumps(value, ensure_ascii=False)}")
        return "\n".join(lines) + "\n"


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings with others over them, which win: a preset above over a whole shape below."""
    hidden = SHAPE if shape_of(above) else set()
    return {**{name: value for name, value in below.items() if name not in hidden}, **above}


@cache
def groups_of_fields() -> dict[str, str]:
    """The group of each flat setting name."""
    return {
        name: group
        for group, info in Settings.model_fields.items()
        for name in info.annotation.model_fields  # type: ignore[union-attr]
    }


@cache
def fields() -> dict[str, FieldInfo]:
    """The definition of each flat setting: type, default, limits, explanation."""
    return {
        name: Settings.model_fields[group].annotation.model_fields[name]  # type: ignore[union-attr]
        for name, group in groups_of_fields().items()
    }


def validated(model: type[Model], values: Any) -> Model:
    """An instance of the model; a wrong value raises SmallmError with one line for all problems."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SmallmError("; ".join(_problem(each) for each in error.errors())) from None


def _problem(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"] if part not in Settings.model_fields)
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = "" if isinstance(error["input"], dict) else f" is {error['input']!r}"
    return f"{place}{shown}: {message}" if place else message


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises SmallmError when there is none.

    A ~ may stand in the path: no shell has seen the command line of a job of Ray.
    """
    path = path.expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SmallmError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SmallmError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SmallmError(f"{path}: must hold `name: value` lines, found {type(content).__name__}")
    return content
