"""The report of a realistic search and of broken ones, read back as HTML, SVG, CSV and terminal."""

import csv
import io
import json
import math
import os
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from rich.console import Console

from smallm import plots
from smallm.errors import SmallmError
from smallm.leaderboard import leaderboard, terminal_table, write_leaderboard
from smallm.plots import at_full_budget, draw_plots, shown, tokens_shown
from smallm.report import read_result, write_plots, write_report

ACTIVATIONS = ["relu", "gelu", "leaky_relu", "tanh", "sigmoid", "silu", "relu2"]
FULL_BUDGET = 1_000_000
SEARCHED = ["activation", "split_ratio", "learning_rate", "hidden", "dropout"]


def trial(number, rng):
    """A config whose score depends on its settings, with a curve that ASHA may have cut short."""
    settings = {
        "activation": ACTIVATIONS[number % 7],
        "split_ratio": rng.choice([0.75, 0.8, 0.9]),
        "learning_rate": 10 ** rng.uniform(-3, -1.8),
        "hidden": rng.choice([256, 384, 512]),
        "dropout": rng.uniform(0, 0.2),
    }
    floor = 1.74 + 0.03 * ACTIVATIONS[::-1].index(settings["activation"]) / 6
    floor += 0.12 * abs(math.log10(settings["learning_rate"]) + 2.4) - 0.1 * settings["split_ratio"]
    steps = {1: 1, 4: 2, 5: 1, 8: 2, 10: 1}.get(number, 5)
    noise = {str(seed): rng.gauss(0, 0.006) for seed in (42, 43, 44)}
    curve = [
        point(step * FULL_BUDGET // 5, floor + 0.12 * (5 / step) ** 0.8 - 0.12, noise)
        for step in range(1, steps + 1)
    ]
    return {
        "id": f"{rng.getrandbits(24):06x}",
        "number": number,
        "settings": settings,
        "status": "completed" if steps == 5 else "stopped",
        "reason": "" if steps == 5 else f"rung {steps}: not in the better half of 7 trials",
        "tokens": curve[-1]["tokens"],
        "seconds": curve[-1]["seconds"],
        "bits_per_byte": {
            "mean": curve[-1]["mean"],
            "spread": 0.006,
            "per_seed": curve[-1]["per_seed"],
        },
        "curve": curve,
    }


def point(tokens, mean, noise):
    per_seed = {seed: mean + offset for seed, offset in noise.items()}
    return {
        "tokens": tokens,
        "seconds": 52e-6 * tokens,
        "mean": sum(per_seed.values()) / len(per_seed),
        "per_seed": per_seed,
        "activity": {
            "dead_units": 1e4 / tokens,
            "saturated_units": 0.4,
            "mean_activation": 0.1,
        },
    }


def finalist(source, role, shift, rng):
    seeds = [1042, 1043, 1044]
    mean = source["bits_per_byte"]["mean"] + shift
    per_seed = {str(seed): rng.gauss(mean, 0.006) for seed in seeds}
    value = sum(per_seed.values()) / 3
    return {
        "trial": source["id"],
        "name": f"trial {source['number']}",
        "role": role,
        "settings": source["settings"],
        "seeds": seeds,
        "parameters": 1_204_352,
        "selection": {"mean": mean, "per_seed": per_seed},
        "final": {
            "bits_per_byte": {
                "value": value,
                "low": value - 0.017,
                "high": value + 0.019,
                "per_seed": per_seed,
            },
            "nll": 363_812.4 * value,
            "cross_entropy": 2.563 * value,
            "token_perplexity": math.exp(2.563 * value),
            "word_perplexity": math.exp(4.6 * value),
            "byte_perplexity": 2**value,
            "top_1": 0.312,
            "top_3": 0.471,
            "top_10": 0.63,
        },
    }


def comparison(against, sentence):
    return {
        "against": against,
        "difference": {"value": 0.021, "low": 0.006, "high": 0.034},
        "probability_of_improvement": {"value": 1.0, "low": 0.44, "high": 1.0},
        "sentence": sentence,
    }


def corpus():
    return {
        "source": "docs",
        "documents": 18_412,
        "bytes": 10_482_113,
        "words": 1_633_208,
        "digest": "9f2c1d77ab40e3c1",
        "duplicates": {"exact": 2_210, "near": 1_904},
        "dropped": {
            "not UTF-8": {"count": 2, "places": ["torch/_a.py", "torch/<b>.py"]},
            "fewer than 8 words": {"count": 40_112, "places": ["numpy/ma/core.py:512"] * 20},
        },
        "versions": {"torch": "2.13.0", "numpy": "2.4.6", "scikit-learn": "1.8.1"},
        "slices": {
            "training": {
                ratio: {"documents": int(18_412 * float(ratio)), "bytes": int(1e7 * float(ratio))}
                for ratio in ("0.75", "0.8", "0.9")
            },
            "selection": {"documents": 921, "bytes": 523_114},
            "final": {"documents": 920, "bytes": 524_870},
        },
    }


def realistic_result(seed=7):
    """What a quick search of twelve trials leaves in result.json."""
    rng = random.Random(seed)
    trials = [trial(number, rng) for number in range(12)]
    trials[5].update(
        status="failed", reason="loss is not finite at step 120 (seed 43)", bits_per_byte=None
    )
    trials[10].update(status="interrupted", reason="the search was stopped by Ctrl-C")
    full = [each for each in trials if each["status"] == "completed"]
    best, second, third = sorted(full, key=lambda each: each["bits_per_byte"]["mean"])[:3]
    return {
        "schema": 2,
        "name": "docs-quick-20261124-0912",
        "created": "2026-11-24T09:12:04+00:00",
        "smallm": {"version": "0.1.0", "digest": "3f2a77c0"},
        "space": "quick",
        "corpus": corpus(),
        "hardware": {
            "machine": "x86_64",
            "cpus": 2,
            "gpus": 0,
            "torch": "2.13.0",
            "precision": "bf16",
        },
        "seconds": {"corpus": 31.2, "search": 214.8, "confirmation": 61.0, "total": 307.4},
        "overhead": {"wall": 276.0, "trials": 493.1, "concurrent": 2, "ratio": 1.12},
        "settings": {"architecture": "mlp", "window": 16, "embedding": 64, "vocabulary": 4096},
        "searched": SEARCHED,
        "seeds": [42, 43, 44],
        "full_budget": FULL_BUDGET,
        "trials": trials,
        "intraclass_correlation": 0.93,
        "replication_advice": "93 % of the scores' variance is between configs, not seeds: "
        "3 seeds rank them reliably; add configs rather than seeds.",
        "importance": {
            "learning_rate": 0.58,
            "activation": 0.24,
            "split_ratio": 0.1,
            "hidden": 0.05,
            "dropout": 0.03,
        },
        "finalists": [
            finalist(best, "champion", 0.002, rng),
            finalist(second, "runner-up", 0.004, rng),
            {**finalist(third, "default", 0.03, rng), "name": "default config"},
        ],
        "comparisons": [
            comparison(
                "runner-up",
                "trial 6 is ahead of trial 2 by 0.004 bits per byte, but the 95 % interval "
                "(-0.007 to 0.016) includes zero: with 3 seeds and 920 documents this search "
                "cannot tell them apart.",
            ),
            comparison(
                "default config",
                "trial 6 is better than the default config by 0.021 bits per byte (95 % interval "
                "0.006 to 0.034): the difference is probably real, but 3 seeds cannot prove it (by "
                "a sign test p is at least 0.125); 5 seeds could.",
            ),
        ],
        "references": [
            {"name": "uniform over bytes", "bits_per_byte": 8.0, "note": ""},
            {"name": "unigram", "bits_per_byte": 3.214, "note": "token frequencies"},
            {"name": "Kneser-Ney 5-gram", "bits_per_byte": 1.902, "note": "interpolated"},
        ],
        "conclusion": [
            "Trial 6 is the champion: it beats the Kneser-Ney 5-gram by 0.18 bits per byte.",
            "It is probably better than the default config; it cannot be told from the runner-up.",
            "Next: run `--space full` with 5 seeds to settle the difference.",
        ],
        "champion": {
            "trial": best["id"],
            "folder": "/home/ada/runs/models/docs-quick-20261124-0912",
            "model_uri": "models:/smallm@champion",
        },
    }


class Page(HTMLParser):
    """Reads a page strictly: elements must nest; keeps attributes, ids and text."""

    VOID = ("meta",)

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def ids(self):
        return [attrs["id"] for _, attrs in self.elements if "id" in attrs]


def written(result, folder):
    path = folder / "report.html"
    write_report(result, path)
    assert [each.name for each in folder.iterdir()] == ["report.html"]
    return path.read_bytes()


def inside():
    """What the pictures of a champion are drawn from; its words are markup."""
    rng = random.Random(1)
    words = [f"word{number}&<b>" for number in range(60)]
    trust = {"5": 0.91, "15": 0.87}
    return {
        "name": "the champion of quick <1>",
        "words": {
            "words": words,
            "places": [[rng.gauss(0, 9), rng.gauss(0, 9)] for _ in words],
            "trustworthiness": {"t-SNE": trust, "PCA": trust, "shuffled": {"5": 0.5, "15": 0.49}},
        },
        "attention": {
            "tokens": ["<|endoftext|>", "Neural", "networks"],
            "weights": [[[[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]] * 4] * 2,
        },
        "neighbors": {"learning": [[word, 0.5] for word in words[:5]]},
    }


def test_the_champion_is_looked_into(result, tmp_path):
    record = small(result, pictures=inside())
    found = Page(written(record, tmp_path).decode())
    assert "Inside the champion" in found.text
    assert "shuffled 0.50 at 5, 0.49 at 15" in found.text
    assert "word4&<b> 0.50" in found.text
    for _, attributes in found.elements:
        link = attributes.get("xlink:href", "#")
        assert link.startswith(("#", "data:image/png;base64,"))  # the cells of attention maps
    write_plots(record, tmp_path / "plots")
    names = {path.stem for path in (tmp_path / "plots").iterdir()}
    layers = {"attention_layer_1", "attention_layer_2"}
    assert names >= {"embeddings", "attention_heads", "activations"} | layers
    assert "Layers before the last" in found.text
    assert "layer 1 of 2" in found.text
    without = small(result, pictures=inside() | {"words": None, "neighbors": {}})
    (tmp_path / "report.html").unlink()
    (tmp_path / "plots").rename(tmp_path.with_name("plots-elsewhere"))
    assert "Nearest words" not in Page(written(without, tmp_path).decode()).text


def test_every_plot_is_also_a_picture_file(result, tmp_path):
    write_plots(result, tmp_path)
    for plot in draw_plots(result):
        root = ElementTree.parse(tmp_path / f"{plot.name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(tmp_path.iterdir())) == len(draw_plots(result))


@pytest.fixture(scope="module")
def result():
    return realistic_result()


@pytest.fixture(scope="module")
def html(result, tmp_path_factory):
    return written(result, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(html):
    return Page(html.decode())


@pytest.fixture(scope="module")
def drawn(result):
    return {plot.name: plot for plot in draw_plots(result)}


def texts(plot):
    """What the picture says, from its text elements."""
    svg = ElementTree.fromstring(plot.svg)
    return ["".join(each.itertext()) for each in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_the_page_needs_no_other_file_and_no_network(html, page):
    assert len(html) < 1_500_000
    assert {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe"} == set()
    for _, attributes in page.elements:
        assert not {"src", "srcset", "data"} & set(attributes)
        links = [attributes.get("href", "#"), attributes.get("xlink:href", "#")]
        assert all(link.startswith("#") for link in links)
    assert not re.search(rb"@import|url\((?!#)", html)


def test_every_link_inside_the_page_finds_its_only_target(html, page):
    targets = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html.decode()))
    assert len(page.ids()) == len(set(page.ids()))
    assert targets <= set(page.ids())


def test_the_page_says_who_won_how_surely_and_on_what(page, result):
    champion = result["finalists"][0]["final"]["bits_per_byte"]
    assert f"{champion['value']:.3f} bits per byte on the final slice" in page.text
    assert f"95 % interval {champion['low']:.3f} to {champion['high']:.3f}" in page.text
    for sentence in [*result["conclusion"], *(each["sentence"] for each in result["comparisons"])]:
        assert sentence in page.text
    for words in ("1.00 (0.44 to 1.00)", "18,412", "9f2c1d77ab40e3c1", "scikit-learn 1.8.1"):
        assert words in page.text
    for words in ("exact 2210, near 1904", "not UTF-8: 2", "torch/<b>.py", "1042, 1043, 1044"):
        assert words in page.text
    assert "1.12 times the least possible" in page.text
    assert "from_pretrained(folder)" in page.text
    assert repr(result["champion"]["folder"]) in page.text


def test_the_trial_table_holds_every_trial_with_the_reason_of_its_end(page, result):
    for each in result["trials"]:
        assert each["reason"] in page.text
        if each["bits_per_byte"]:
            assert f"{each['bits_per_byte']['mean']:.3f} ± 0.006" in page.text


def test_a_sentence_that_the_conclusion_quotes_is_not_said_twice(result, tmp_path):
    sentence = result["comparisons"][0]["sentence"]
    quoted = {**small(result), "conclusion": ["T" + sentence[1:]]}
    assert Page(written(quoted, tmp_path).decode()).text.count(sentence[1:]) == 1


def test_the_same_record_gives_the_same_bytes_in_another_process_without_pyplot(html, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(realistic_result()))
    code = (
        "import sys\nfrom pathlib import Path\nfrom smallm import report\n"
        "assert 'matplotlib' not in sys.modules\nfolder = Path(sys.argv[1])\n"
        "record = report.read_result(folder / 'result.json')\n"
        "report.write_report(record, folder / 'report.html')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    again = (tmp_path / "report.html").read_bytes()
    assert again == html


def test_drawing_leaves_matplotlibs_settings_alone(result):
    before = dict(mpl.rcParams)
    draw_plots(small(result))
    assert dict(mpl.rcParams) == before


def test_each_plot_has_title_caption_alternative_text_and_axes_with_units(drawn):
    assert list(drawn) == [
        "finalist_seeds",
        "reference_models",
        "learning_curves",
        "activations",
        "importance",
        *(f"setting_{name}" for name in SEARCHED),
    ]
    for plot in drawn.values():
        svg = ElementTree.fromstring(plot.svg)
        assert svg.get("role") == "img"
        assert svg.get("aria-label") == f"{plot.title}. {plot.caption}"
        assert plot.title in texts(plot)
        assert any("bits per byte" in text or "(%)" in text for text in texts(plot))
        assert plot.caption.endswith(".")
    assert "learning rate (logarithmic)" in texts(drawn["setting_learning_rate"])
    assert "training tokens" in texts(drawn["learning_curves"])


def test_trials_short_of_the_full_budget_are_marked_apart_with_their_tokens(drawn, result):
    scored = [each for each in result["trials"] if each["bits_per_byte"]]
    full = [each for each in scored if at_full_budget(each, result)]
    early = [each for each in scored if each not in full]
    assert {each["tokens"] for each in early} == {200_000, 400_000}
    for marks, style in plots._marked(result, full, early):
        hollow = style.get("mfc") == "white"
        assert all(hollow != at_full_budget(each, result) for each in marks)
        if style["label"] != "champion's trial":
            assert all(tokens_shown(each["tokens"]) in style["label"] for each in marks)
    for name in SEARCHED:
        words = texts(drawn[f"setting_{name}"])
        assert {"only 200 k tokens", "only 400 k tokens", "full budget, 1 M tokens"} <= set(words)
        assert "ended early" in words


def test_a_far_outlier_is_cut_off_and_said(result):
    wild = small(result)
    last = wild["trials"][0]
    wild["trials"] = [{**last, "id": "wild", "bits_per_byte": {"mean": 19.5}}, *wild["trials"]]
    plot = draw_plots(wild)[-1]
    assert plot.caption.endswith("1 value lies beyond the edge, the worst at 19.500.")
    assert "20" not in texts(plot)


NASTY = '<script>alert("1")</script> & $x_{$ [red]'


def small(result, **changes):
    """The record with one searched setting: quick to draw."""
    return {**result, "searched": ["activation"], **changes}


def test_foreign_text_is_escaped_everywhere(result, tmp_path):
    nasty = json.loads(json.dumps(small(result)))
    nasty["name"] = nasty["space"] = nasty["corpus"]["source"] = NASTY
    nasty["searched"] = [NASTY]
    nasty["conclusion"] = [NASTY]
    nasty["importance"] = {NASTY: 1.0}
    nasty["corpus"]["dropped"] = {NASTY: {"count": 1, "places": [NASTY, "bad \udcff name"]}}
    nasty["references"][0] |= {"name": NASTY, "note": NASTY}
    nasty["champion"]["folder"] = NASTY
    for number, each in enumerate(nasty["trials"]):
        each |= {"reason": NASTY, "settings": {NASTY: f"{NASTY}{number % 3}"}}
    for each in nasty["finalists"]:
        each |= {"name": NASTY, "settings": {NASTY: NASTY}}
    content = written(nasty, tmp_path)
    page = Page(content.decode())
    assert b"<script" not in content
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.text.count(NASTY) > 30
    printed = terminal(nasty, 120)
    assert "[red]" in printed


ABSENT = object()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ({"finalists": [], "champion": None, "conclusion": []}, "Best so far, unconfirmed: trial"),
        ({"finalists": ABSENT, "conclusion": ABSENT, "trials": []}, "No trial has a score."),
        ({"importance": None, "intraclass_correlation": None, "comparisons": []}, "Finalists"),
        ({"corpus": ABSENT, "hardware": {}, "seconds": ABSENT, "overhead": {}}, "Full budget"),
        ({"references": ABSENT, "replication_advice": "", "settings": {}}, "All trials"),
    ],
)
def test_parts_that_an_interrupted_search_lacks_are_left_out(result, tmp_path, missing, words):
    record = small(result, **missing)
    record = {key: value for key, value in record.items() if value is not ABSENT}
    assert words in Page(written(record, tmp_path).decode()).text
    assert terminal(record, 80)
    finalists = {each["trial"] for each in record.get("finalists", [])}
    assert len(leaderboard(record)) == len(finalists | {each["id"] for each in record["trials"]})


def test_a_search_of_failed_or_early_trials_only_is_reported(result, tmp_path):
    early = [each for each in result["trials"] if each["status"] != "completed"]
    record = small(result, trials=early, finalists=[], champion=None, conclusion=[])
    assert "Best so far, unconfirmed: trial 4 with" in Page(written(record, tmp_path).decode()).text
    failed = small(record, trials=[each for each in early if each["status"] == "failed"])
    assert [plot.name for plot in draw_plots(failed)] == [
        "reference_models",
        "learning_curves",
        "activations",
        "importance",
    ]


def terminal(result, width, **options):
    console = Console(width=width, file=io.StringIO())
    console.print(terminal_table(result, **options))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_tables_fit_mark_the_champion_and_need_no_emoji(result, width):
    printed = terminal(result, width)
    assert max(map(len, printed.splitlines())) <= width
    assert all(ord(letter) < 0x2600 for letter in printed)
    champion = result["finalists"][0]
    interval = champion["final"]["bits_per_byte"]
    lines = [line.split() for line in printed.splitlines() if "champion" in line]
    assert " ".join(lines[0]) == (
        f"{champion['name']} champion {interval['value']:.3f} "
        f"{interval['low']:.3f} to {interval['high']:.3f} 3"
    )
    assert lines[1][0] == champion["name"].split()[1]
    assert lines[1][-4:-1] == ["M", "52", "s"]
    assert {"stopped", "failed", "interrupted"} <= set(printed.split())


def test_a_long_search_is_cut_in_the_terminal_and_says_so(result):
    printed = terminal(result, 80, rows=5)
    assert "7 more trials are in report.html and leaderboard.csv" in printed
    assert "failed" not in printed


def test_of_many_settings_the_first_are_in_the_terminal_and_the_rest_is_named(result):
    searched = [*result["searched"], "dropout", "warmup", "decay", "clip"]
    printed = terminal({**result, "searched": searched}, 80)
    more = len(searched) - 5
    assert f"{more} more settings of each are in report.html and leaderboard.csv" in printed
    assert "clip" not in printed


def test_the_leaderboard_ranks_finalists_then_full_budgets_then_the_rest(result, tmp_path):
    write_leaderboard(result, tmp_path / "leaderboard.csv")
    with open(tmp_path / "leaderboard.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["role"] for row in rows[:3]] == ["champion", "runner-up", "default"]
    assert {row["trial"] for row in rows} == {each["id"] for each in result["trials"]}
    full = [float(row["bits_per_byte"]) for row in rows[3:] if row["full_budget"] == "True"]
    assert full == sorted(full)
    tokens = [int(row["tokens"]) for row in rows if row["status"] != "failed"]
    assert tokens == sorted(tokens, reverse=True)
    assert rows[-1]["status"] == "failed"
    assert rows[-1]["bits_per_byte"] == ""
    final = result["finalists"][0]["final"]
    assert float(rows[0]["final_bits_per_byte_low"]) == final["bits_per_byte"]["low"]
    assert float(rows[0]["final_top_10"]) == final["top_10"]
    assert rows[0]["parameters"] == "1204352"


def test_a_default_config_that_was_no_trial_has_a_row_of_its_own(result):
    default = {**result["finalists"][2], "trial": None, "name": "the default config"}
    board = leaderboard({**result, "finalists": [*result["finalists"][:2], default]})
    assert len(board) == len(result["trials"]) + 1
    assert board.iloc[-1]["role"] == "default"
    assert board.iloc[-1]["activation"] == default["settings"]["activation"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not the result of a search"),
        ('{"schema": 2}', "is not the result of a search"),
        ('{"schema": 1, "trials": []}', "has schema 1; this smallm reads 2"),
    ],
)
def test_a_file_that_is_no_result_is_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(SmallmError, match=re.escape(words)) as error:
        read_result(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [(0, "0"), (999, "999"), (1_000, "1 k"), (999_600, "1 M"), (1_250_000, "1.25 M"), (2e9, "2 G")],
)
def test_tokens_are_written_with_three_digits(tokens, words):
    assert tokens_shown(tokens) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0027163, "0.00272"), (True, "yes"), (None, "none"), (512, "512"), ("relu2", "relu2")],
)
def test_values_of_settings_are_written_for_people(value, words):
    assert shown(value) == words
