"""Models side by side: real small models, one broken, one absent; the record and what shows it."""

import json
import math
import shutil
from html.parser import HTMLParser
from importlib.util import find_spec

import numpy as np
import pytest
import tiny_models
import torch
from rich.cells import cell_len
from rich.console import Console

from smallm import comparison, significance
from smallm.comparison import each_model, evaluate, held_out
from smallm.comparison_plots import draw_comparison, draw_next_words
from smallm.comparison_section import comparison_sections
from smallm.comparison_tables import continuation_shown, evaluation_tables, prompt_tables
from smallm.errors import SmallmError
from smallm.evaluation_run import EvaluationRun, keep_temperatures, kept_temperature
from smallm.predictors import Decoding
from smallm.predictors.causal import Causal
from smallm.settings import Settings
from smallm.tracking import sync
from smallm.training import Training
from smallm.training_run import save_median

RATIOS = (0.75, 0.8, 0.9)
PROMPTS = ["The small model", "Every deep layer learns"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bpe_tokens):
    """A trained SmaLLM, a GPT-2, an ALBERT, and a GPT-2 whose weights are cut off."""
    root = tmp_path_factory.mktemp("models")
    settings = Settings().replace(
        **{"vocabulary": 400, "window": 4, "embedding": 8, "hidden": 16, "seeds": [1]},
        **{"training_tokens": 30_000, "batch_size": 128, "evaluate_at": [1.0]},
    )
    selection, _ = bpe_tokens.tape.heldout(RATIOS)
    training = Training(settings, bpe_tokens, selection=selection)
    *_, last = training
    save_median(training, last, root / "champion", heldout_above=0.9)
    for name, made in {
        "gpt2": tiny_models.gpt2(context=512),
        "albert": tiny_models.albert(),
    }.items():
        for part in made:
            part.save_pretrained(root / name)
    shutil.copytree(root / "gpt2", root / "broken")
    weights = (root / "broken" / "model.safetensors").read_bytes()
    (root / "broken" / "model.safetensors").write_bytes(weights[:1000])
    return {each.name: each for each in root.iterdir()}


@pytest.fixture(scope="module")
def text(tape):
    selection, final = tape.heldout(RATIOS)
    return held_out(tape, final, most_bytes=6_000, fitting=selection)


@pytest.fixture(scope="module")
def record(folders, text, tmp_path_factory):
    """Everything at once; a baseline of the registry that is not here stands among the models."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(home / "no-cache"))
        names = ["champion", "gpt2-small", "albert", "broken", "EleutherAI/gpt-neo-125M"]
        places = {**folders, "gpt2-small": folders["gpt2"]}
        models = each_model(
            names,
            folders={name: place for name, place in places.items() if name in names},
            **{"home": home, "threads": 1, "device": "cpu"},
        )
        said = []
        found = evaluate(models, text, said.append, prompts=PROMPTS)
    return {**json.loads(json.dumps(found)), "said": said}


def row(record, name):
    (found,) = (each for each in record["models"] if each["name"] == name)
    return found


def test_every_model_keeps_its_row_and_what_is_wrong_with_it(record):
    assert [each["name"] for each in record["models"]] == [
        *("champion", "gpt2-small", "albert", "broken", "EleutherAI/gpt-neo-125M")
    ]
    assert row(record, "broken")["failed"]
    assert "model.safetensors" in row(record, "broken")["reason"]
    absent = row(record, "EleutherAI/gpt-neo-125M")
    assert not absent["failed"]
    assert "cache" in absent["reason"]
    assert absent["remedy"]
    assert absent["parameters"] == 125_198_592
    assert len(record["said"]) == 5


def test_all_models_are_scored_on_the_same_bytes(record, text, tape):
    assert record["bytes"] == sum(len(each.encode()) for each in text.texts)
    _, final = tape.heldout(RATIOS)
    assert record["bytes"] == tape.bytes(tape.beginning(final, 6_000))
    for name in ("champion", "gpt2-small"):
        nll = sum(row(record, name)["nll_by_document"])
        bits = row(record, name)["bits_per_byte"]
        assert bits["value"] == pytest.approx(nll / math.log(2) / record["bytes"])
        assert bits["low"] < bits["value"] < bits["high"]
        words = sum(len(each.split()) for each in text.texts)
        assert row(record, name)["word_perplexity"]["value"] == pytest.approx(math.exp(nll / words))


def test_a_trained_model_beats_a_random_one_in_every_figure_of_the_text(record):
    good, bad = row(record, "champion"), row(record, "gpt2-small")
    assert good["bits_per_byte"]["high"] < bad["bits_per_byte"]["low"]
    assert good["next_word"]["top_10"]["value"] > bad["next_word"]["top_10"]["value"]
    assert good["quality"]["bleu"]["value"] >= bad["quality"]["bleu"]["value"]


def test_top_k_accuracy_rises_with_k_within_its_interval(record):
    for name in ("champion", "gpt2-small"):
        found = row(record, name)["next_word"]
        shares = [found[f"top_{k}"] for k in (1, 3, 10)]
        assert [each["value"] for each in shares] == sorted(each["value"] for each in shares)
        assert all(0 <= each["low"] <= each["value"] <= each["high"] <= 1 for each in shares)
        assert found["positions"] == 48


def test_calibration_is_fitted_on_text_that_is_not_scored(record, text):
    assert not set(text.fitting) & set(text.texts)
    assert text.fitting
    random = row(record, "gpt2-small")["calibration"]
    assert random["temperature"] > 1.2  # weights this wide are far too sure
    assert random["after"]["nll"]["value"] < random["before"]["nll"]["value"]


def test_masked_models_have_a_figure_of_their_own_only(record):
    found = row(record, "albert")
    assert found["pseudo_log_likelihood_per_word"]["value"] < 0
    assert "bits_per_byte" not in found
    assert found["prompts"][0]["next_words"]["words"]
    assert "continuation" not in found["prompts"][0]


def test_every_model_answers_every_prompt(record):
    for name in ("champion", "gpt2-small"):
        answers = row(record, name)["prompts"]
        assert [each["prompt"] for each in answers] == PROMPTS
        for answer in answers:
            assert answer["error"] is None
            assert answer["continuation"]
            assert len(answer["next_words"]["words"]) == comparison.NEXT_WORDS


def test_a_prompt_that_one_model_cannot_take_leaves_the_others_results(folders, tmp_path):
    long = " ".join(["model"] * 700)
    models = each_model(
        ["gpt2", "champion"],
        folders={name: folders[name] for name in ("gpt2", "champion")},
        **{"home": tmp_path, "threads": 1, "device": "cpu"},
    )
    short, unlimited = comparison.compare(
        models, [long], k=3, decodings=lambda name: Decoding(max_tokens=3)
    )
    assert "512" in short["prompts"][0]["error"] or "takes at most" in short["prompts"][0]["error"]
    assert unlimited["prompts"][0]["error"] is None
    assert unlimited["prompts"][0]["continuation"]


@pytest.fixture(scope="module")
def quantized(folders):
    """A model that only a library which is not installed can load."""
    folder = shutil.copytree(folders["gpt2"], folders["gpt2"].parent / "quantized")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_model_that_needs_a_missing_library_leaves_the_others_their_scores(
    smallm, folders, quantized, small_corpus
):
    shown = smallm(
        *("evaluate", "--models", f"{quantized},{folders['gpt2']}", "--bytes", "2000"),
        *("--source", "folder", "--path", small_corpus, "--json"),
    )
    assert shown.code == 1
    assert "Traceback" not in shown.err
    (error,) = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert "bitsandbytes" in error
    failed, good = json.loads(shown.out)["models"]
    assert failed["failed"]
    assert failed["reason"].startswith(f"{quantized}: cannot be loaded: ")
    assert "\n" not in failed["reason"]
    assert good["bits_per_byte"]["value"] > 0


def test_a_model_that_fails_while_it_is_scored_leaves_the_others_their_scores(text):
    damaged, sound = (Causal(name, *tiny_models.gpt2(context=512)) for name in ("damaged", "sound"))
    damaged.model.transformer.wte = torch.nn.Embedding(10, 16)  # knows ten tokens
    failed, good = evaluate([damaged, sound], text, lambda line: None, prompts=PROMPTS)["models"]
    assert failed["failed"]
    assert failed["reason"].startswith("IndexError: ")
    assert all(answer["error"].startswith("IndexError: ") for answer in failed["prompts"])
    assert good["bits_per_byte"]["value"] > 0


@pytest.mark.filterwarnings("error")
def test_a_single_model_has_an_axis_of_its_own(record):
    alone = {**record, "models": [row(record, "champion")]}
    names = [plot.name for plot in draw_comparison(alone)]
    assert names[:2] == ["against_parameters", "against_milliseconds_per_kilobyte"]


def test_a_continuation_is_shown_beside_what_was_wrong_with_the_next_words():
    answer = {"error": "too long", "continuation": "and so on"}
    shown = continuation_shown({"kind": "causal"}, answer)
    assert "and so on" in shown
    assert "too long" in shown


def test_an_unknown_name_ends_before_any_model_is_loaded(folders, tmp_path):
    with pytest.raises(SmallmError, match="did you mean"):
        each_model(
            ["champion", "gtp2"],
            folders={"champion": folders["champion"]},
            **{"home": tmp_path, "threads": 1, "device": "cpu"},
        )


def test_the_champion_is_compared_in_words_with_what_the_other_has_read(record, text):
    nll = np.array([row(record, "champion")["nll_by_document"]] * 5)
    nll *= np.linspace(0.99, 1.01, 5)[:, None]
    sizes = np.array([len(each.encode()) for each in text.texts])
    told = {**record, "models": [dict(each) for each in record["models"]]}
    row(told, "gpt2-small")["has_read"] = "everything"
    (sentence,) = comparison.sentences(told, nll, sizes)
    assert sentence.startswith("The champion is better than gpt2-small by")
    assert sentence.endswith("gpt2-small has read everything.")


def test_metrics_for_mlflow_are_flat_numbers(record):
    for each in record["models"]:
        if "reason" not in each:
            flat = comparison.metrics(each)
            assert all(isinstance(value, int | float) for value in flat.values())
    flat = comparison.metrics(row(record, "champion"))
    assert {"bits_per_byte", "bits_per_byte/low", "temperature", "quality/bleu"} < set(flat)
    assert {"next_word/top_10", "calibration/ece_mass/after"} < set(flat)


def printed(table, width=110):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 110])
def test_the_tables_show_every_model_with_its_reason(record, width):
    told = printed(evaluation_tables(record), width) + printed(prompt_tables(record), width)
    flat = " ".join(told.split())
    for name in ("champion", "gpt2-small", "albert", "broken", "EleutherAI"):
        assert name in flat
    assert f"{row(record, 'champion')['bits_per_byte']['value']:.3f}" in told
    assert "not available" in flat
    assert "failed" in flat
    assert all(cell_len(line) <= width for line in told.splitlines())


class Text(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.words = []
        self.feed(page)

    def handle_data(self, data):
        self.words.append(data)


def test_the_sections_hold_tables_plots_and_the_warning(record):
    sections = comparison_sections(record)
    assert list(sections) == ["Beside pretrained models", "Prompts side by side"]
    told = " ".join(" ".join(Text(page).words) for page in sections.values())
    assert "may have read the very text" in told
    assert "Masked models" in told
    assert "Calibration" in told
    for prompt in PROMPTS:
        assert prompt in told
    plots = draw_comparison(record)
    assert [plot.name for plot in plots[:2]] == [
        "against_parameters",
        "against_milliseconds_per_kilobyte",
    ]
    assert len([plot for plot in plots if plot.section == "calibration"]) == 2
    assert len(draw_next_words(record, 0)) == 3
    assert all(plot.svg in sections["Prompts side by side"] for plot in draw_next_words(record, 0))


def test_an_evaluation_is_recorded_in_the_home_and_in_mlflow(record, tmp_path):
    import mlflow

    with EvaluationRun(tmp_path, tell=print) as run:
        run.finish({name: value for name, value in record.items() if name != "said"})
    assert json.loads((run.folder / "evaluation.json").read_text())["bytes"] == record["bytes"]
    assert "</html>" in run.page.read_text()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smallm").experiment_id
    runs = {each.info.run_name: each for each in client.search_runs([experiment])}
    assert set(runs) == {run.folder.name, "champion", "gpt2-small", "albert"}
    parent = runs[run.folder.name].info.run_id
    assert runs["champion"].data.tags["mlflow.parentRunId"] == parent
    assert sync(run.folder, f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}", print) == (0, 0)
    bits = row(record, "champion")["bits_per_byte"]["value"]
    assert runs["champion"].data.metrics["bits_per_byte"] == pytest.approx(bits)


def test_a_fitted_temperature_is_kept_for_generation(record, folders, tmp_path):
    keep_temperatures(record, tmp_path)
    wanted = row(record, "gpt2-small")["calibration"]["temperature"]
    assert kept_temperature("gpt2-small", folder=None, home=tmp_path) == pytest.approx(wanted)
    own = kept_temperature("champion", folder=folders["champion"], home=tmp_path)
    assert own == pytest.approx(row(record, "champion")["calibration"]["temperature"], rel=0.1)
    with pytest.raises(SmallmError, match="smallm evaluate --models other"):
        kept_temperature("other", folder=None, home=tmp_path)


def test_a_ratio_of_sums_has_the_interval_of_resampled_documents():
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 500, 200)
    totals = sizes * rng.normal(3, 0.5, 200)
    found = significance.ratio_interval(totals, sizes, seed=1)
    assert found.value == pytest.approx(totals.sum() / sizes.sum())
    draws = rng.integers(200, size=(2000, 200))
    ratios = totals[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_prompts_come_from_a_utf8_file_with_one_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("The first\n\nÜber das zweite \n", encoding="utf-8")
    # A space at the end stays: who compares is told of it, as with --prompt.
    assert comparison.read_prompts(file) == ["The first", "Über das zweite "]
    assert len(comparison.default_prompts()) >= 10
    for content, words in ((b"\n \n", "holds no prompt"), (b"caf\xe9", "UTF-8")):
        file.write_bytes(content)
        with pytest.raises(SmallmError, match=words):
            comparison.read_prompts(file)
    with pytest.raises(SmallmError, match="No such file"):
        comparison.read_prompts(tmp_path / "none.txt")


def test_compare_shows_what_works_and_ends_with_what_does_not(smallm, folders, tmp_path):
    names = f"{folders['champion']},{folders['gpt2']},{folders['broken']}"
    shown = smallm("compare", "--models", names, "--prompt", PROMPTS[0], "--max-tokens", "5")
    assert shown.code == 1
    assert PROMPTS[0] in shown.out
    (error,) = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert "model.safetensors" in error
    (page,) = (tmp_path / "home").glob("comparisons/*/comparison.html")
    assert PROMPTS[0] in page.read_text()
    found = json.loads(
        smallm("compare", "--models", names, "--prompt", PROMPTS[0], "--json", "-k", "3").out
    )
    answers = [each.get("prompts") for each in found["models"]]
    assert [len(each[0]["next_words"]["words"]) for each in answers[:2]] == [3, 3]
    assert answers[2] == []


def test_too_large_a_k_is_said_for_each_model_in_one_line(smallm, folders):
    shown = smallm(
        *("compare", "--models", f"{folders['champion']},{folders['albert']}"),
        *("--prompt", PROMPTS[0], "-k", "100000"),
    )
    assert shown.code == 1
    assert "(and 1 more)" in shown.err
    assert "100000" in shown.err.splitlines()[-1]


def test_prompts_that_are_not_utf8_are_one_line(smallm, folders, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9 is\n")
    shown = smallm(
        *("compare", "--models", folders["champion"], "--prompts", tmp_path / "prompts.txt")
    )
    assert shown.code == 1
    assert shown.err.count("\n") == 1
    assert "is not UTF-8" in shown.err


def test_generate_continues_with_any_model_and_its_fitted_temperature(smallm, folders):
    args = ("--prompt", "The small", "--max-tokens", "6", "--json")
    for name in ("champion", "gpt2"):
        text = json.loads(smallm("generate", folders[name], *args).out)["texts"][0]
        assert text["continuation"]
    assert smallm("generate", folders["champion"], *args, "--temperature", "fitted").code == 0
    refused = smallm("generate", folders["gpt2"], *args, "--temperature", "fitted")
    assert refused.code == 1
    assert "smallm evaluate --models" in refused.err
    masked = smallm("generate", folders["albert"], *args)
    assert masked.code == 1
    assert "masked" in masked.err


def test_a_whole_corpus_can_be_scored_without_a_held_out_part(smallm, folders, tmp_path):
    (tmp_path / "letter.txt").write_text("The small model reads the sparse corpus. " * 30)
    shown = smallm(
        *("evaluate", "--models", folders["gpt2"], "--source", "folder"),
        *("--path", tmp_path / "letter.txt", "--slice", "all", "--json"),
    )
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert found["bytes"] == 30 * 41
    assert found["models"][0]["bits_per_byte"]["value"] > 0
    assert "calibration" not in found["models"][0]
