"""The report of a realistic search and of broken ones, read back as HTML, SVG, CSV and terminal."""

import math
import random

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
        "schema": 1,
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
