"""What the sampler suggests to the trials of a search; no Ray starts."""

import itertools

from smallm.space import Space
from tune.search import PACKED, OptunaSearcher, packed

SPACE = Space.model_validate(
    {
        "name": "few",
        "trials": 6,
        "seeds": [1],
        "search": {
            "activation": {"choices": ["relu", "gelu", "tanh"]},
            "split_ratio": {"choices": [0.75, 0.8]},
        },
    }
)
ALL = set(itertools.product(["relu", "gelu", "tanh"], [0.75, 0.8]))


def tried(searcher, number):
    """Suggests and ends a trial; gives its config as a tuple."""
    config = searcher.suggest(f"trial-{number}")
    point = config["point"]
    score = 2.0 if point["activation"] == "gelu" else 3.0
    report = {"bits_per_byte": score, "milestone": 1, "tokens": 100, "finished": True}
    result = packed(report)
    assert PACKED in result
    searcher.on_trial_complete(f"trial-{number}", result)
    return config["number"], (point["activation"], point["split_ratio"])


def test_no_config_is_tried_twice_while_others_are_left():
    searcher = OptunaSearcher(SPACE, "few")
    found = [tried(searcher, number) for number in range(6)]
    assert [number for number, _ in found] == list(range(6))
    assert {point for _, point in found} == ALL
    number, point = tried(searcher, 6)  # there is nothing new
    assert number == 6
    assert point in ALL


def test_a_restored_searcher_knows_what_was_tried(tmp_path):
    first = OptunaSearcher(SPACE, "few")
    found = {tried(first, number)[1] for number in range(4)}
    first.save(str(tmp_path / "state"))
    second = OptunaSearcher(SPACE, "few")
    second.restore(str(tmp_path / "state"))
    more = [tried(second, number) for number in (4, 5)]
    assert [number for number, _ in more] == [4, 5]
    assert found | {point for _, point in more} == ALL
