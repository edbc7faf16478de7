"""What a search tells while it runs."""

from smallm.progress import SearchDisplay


def report(bits, *, rung, tokens, seconds):
    return {
        "bits_per_byte": bits,
        "spread": 0.001,
        "rung": rung,
        "tokens": tokens,
        "seconds": seconds,
    }


def test_a_search_that_goes_on_counts_what_ended_before(capsys):
    display = SearchDisplay(trials=4, rungs=3)
    before = {0: report(2.5, rung=3, tokens=900, seconds=30.0), 1: {}}  # the second one failed
    display.resumed(before)
    display.scored(2, report(2.6, rung=2, tokens=300, seconds=10.0))
    display.ended(2, report(2.6, rung=2, tokens=300, seconds=12.0), "stopped early")
    told = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
    assert told == [
        "2/4 trials ended before; best 2.500 (trial 0)",
        "trial 2 rung 2/3: 2.600 ± 0.001 bits per byte after 300 tokens; best 2.500 (trial 0)",
        "trial 2 ended: stopped early; 3/4 trials, about 14 s left before confirmation",
    ]


def test_a_new_search_says_nothing_of_before(capsys):
    SearchDisplay(trials=4, rungs=3).resumed({})
    assert capsys.readouterr().out == ""
