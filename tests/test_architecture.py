"""Imports point one way, ray stays outside, mlflow stays in its two files, help is quick."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import smallm

ROOT = Path(smallm.__file__).parent
# Each line may import from itself and from the lines above.
LEVELS = [
    ["__init__", "errors", "files", "hardware", "settings", "provenance", "spaces", "activity"],
    ["documents", "tokens", "ngrams", "models", "significance", "duplicates", "hashes", "strata"],
    ["encoding", "spool"],
    ["home", "options", "space", "tape", "ablations", "losses", "muon"],
    ["tape_building", "token_tape"],
    ["watching", "batches", "scoring", "optimizers", "scheduled_sampling", "quality"],
    ["curriculum", "replicates", "corpus_profile"],
    ["training", "references", "champion", "calibration"],
    ["baselines"],
    ["predictors", "next_words", "word_search"],
    ["training_run", "comparison", "prompts"],
    ["parcels", "cluster", "plan"],
    ["journal", "mlflow_store", "mlflow_model", "tracking", "storage"],
    ["charts", "activity_plots", "plots", "page", "terminal", "leaderboard"],
    ["source_matrix", "attention_maps", "embeddings", "learning_curves"],
    ["comparison_tables", "comparison_plots", "comparison_section", "corpus_section", "pictures"],
    ["report"],
    ["recorded_run", "ablation_section"],
    ["evaluation_run", "results", "progress", "confirmation", "kept_replicates"],
    ["ledger", "serving", "ablation_run"],
    ["cli_corpus", "cli_baselines", "cli_models"],
    ["cli_ablate"],
    ["cli_plots"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# Registries name what they hold: settings ask them for the known names, inside validators, and
# the package tells transformers of its models once both are imported.
UPWARD = {("settings", "documents"), ("settings", "models")}
FILES = sorted(ROOT.rglob("*.py"))


def modules():
    for file in FILES:
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imported(file):
    """Full names of all modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name):
    """The part of smallm that a full name belongs to."""
    top, *pieces = name.split(".")
    return (pieces or ["__init__"])[0] if top == "smallm" else None


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_module_has_a_level():
    parts = {file.relative_to(ROOT).parts[0].removesuffix(".py") for file in FILES}
    assert parts == set(LEVEL)


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_imports_point_one_way(file):
    own = file.relative_to(ROOT).parts[0].removesuffix(".py")
    parts = {part for name in imported(file) if (part := part_of(name)) in LEVEL} - {own}
    above = {part for part in parts if LEVEL[part] > LEVEL[own] and (own, part) not in UPWARD}
    assert not above, f"{own} (level {LEVEL[own]}) imports {sorted(above)} from a higher level"


def test_only_the_two_mlflow_files_import_mlflow():
    users = {
        file.name
        for file in FILES
        if any(name.split(".")[0] == "mlflow" for name in imported(file))
        and "TYPE_CHECKING" not in file.read_text(encoding="utf-8")
    }
    assert users == {"mlflow_store.py", "mlflow_model.py"}


def test_every_module_imports_in_a_fresh_interpreter_without_ray():
    code = (
        "import sys; from importlib import import_module\n"
        "sys.modules['ray'] = None\n"
        "for name in sys.argv[1:]: import_module(name)"
    )
    models_from_code = "smallm.mlflow_model"  # mlflow runs this file when it loads a model
    run(code, *(name for name in modules() if name != models_from_code))


def test_nothing_below_the_records_needs_mlflow_or_fastapi():
    code = (
        "import sys; from importlib import import_module\n"
        "sys.modules.update(mlflow=None, fastapi=None)\n"
        "for name in sys.argv[1:]: import_module(name)"
    )
    run(code, *(name for name in modules() if LEVEL[part_of(name)] < LEVEL["journal"]))


def test_importing_smallm_is_light_and_help_loads_no_heavy_library():
    code = (
        "import sys, smallm.cli\n"
        "sys.argv = ['smallm', '--help']\n"
        "try: smallm.cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print('|', *{name.split('.')[0] for name in sys.modules})"
    )
    printed = run(code)
    assert "Usage:" in printed
    loaded = set(printed[printed.index("|") :])
    assert not loaded & {"torch", "transformers", "mlflow", "ray", "datasets", "matplotlib"}
