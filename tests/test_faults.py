"""What fails while a search runs: a worker, its memory, its disk. Nothing done is lost or doubled.

The driver's death and an outage of MLflow are in test_search.py, those of machines in cluster/.
"""

import re
import signal
import subprocess
import time

import psutil
import pytest
from test_search import (
    SPACE,
    expected_keys,
    finish,
    keys_of,
    local_uri,
    only_search,
    read_until,
    runs_of,
    start,
)
from test_search import place as place

from smallm.journal import JOURNAL_NAME

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

GREEDY_HIDDEN, GREEDY_BYTES = 1_500_000, 8e9  # a trial's hidden units, and about what it takes
ROOM = 5e9  # bytes that all processes of a search may take: twice what other trials do


def trials_of(process):
    """Processes of trials in the Ray that a search has started."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [each for each in below if each.name().startswith("ray::ImplicitFunc")]


def check_nothing_is_lost_or_doubled(place):
    _, result = only_search(place)
    assert result["champion"]
    assert [trial["number"] for trial in result["trials"]] == [0, 1, 2, 3, 4]
    client, runs = runs_of(local_uri(place))
    assert keys_of(runs) == expected_keys(result)
    by_key = {run.data.tags["smallm.key"]: run for run in runs}
    for trial in result["trials"]:
        run = by_key[f"trial/{trial['id']}"]
        series = client.get_metric_history(run.info.run_id, "bits_per_byte")
        assert [point.step for point in series] == [point["tokens"] for point in trial["curve"]]
        assert len(series) == len(set(point.step for point in series))
    return result


def kill_trials(process):
    killed = trials_of(process)
    assert killed
    for worker in killed:
        worker.send_signal(signal.SIGKILL)


def test_a_trial_whose_worker_is_killed_goes_on_from_its_checkpoint(place):
    (place / "longer.yaml").write_text(SPACE % 150_000)
    process = start(place, "--space", "longer.yaml")
    before = read_until(process, "trial 0 rung 1/3")
    time.sleep(1)  # Ray asks the worker for the checkpoint once it has told of the report
    kill_trials(process)
    output = finish(process)
    result = check_nothing_is_lost_or_doubled(place)
    assert {trial["status"] for trial in result["trials"]} <= {"completed", "stopped"}
    reached = [
        int(tokens.replace(",", ""))
        for tokens in re.findall(r"trial 0 rung .* after ([\d,]+) tokens", before + output)
    ]
    assert reached == sorted(set(reached))  # nothing that was before the kill is repeated


IMPATIENT = """
import os, time, search

def hang_once(driver):
    if os.getpid() == driver:
        return Hangs()
    try:
        os.close(os.open(f"{PLACE}/hangs", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    time.sleep(3600)

class Hangs:
    "Is unpickled in the process of a trial while that starts, for the first time for ever."
    def __reduce__(self):
        return hang_once, (os.getpid(),)

PLACE, hangs, make_tuner = os.getcwd(), Hangs(), search.make_tuner

def trial(config, *, space, folders, job):
    assert hangs is None
    search.train_trial(config, space=space, folders=folders, job=job)

search.make_tuner = lambda ledger, job: make_tuner(ledger, job, trial=trial)
search.START_SECONDS = 20
search.run_program(search.main)
"""


def test_a_trial_whose_process_never_starts_is_started_again(place):
    """As after a cut of the network in that moment: Ray waits for an answer that never comes."""
    (place / "impatient.py").write_text(IMPATIENT)
    output = finish(start(place, "--space", "small.yaml", program="impatient.py"))
    assert (place / "hangs").exists()
    assert output.count("a trial has not started in 20 s: it is started again") == 1
    assert "Traceback" not in output
    result = check_nothing_is_lost_or_doubled(place)
    assert {trial["status"] for trial in result["trials"]} <= {"completed", "stopped"}


def test_what_has_ended_stays_when_workers_are_killed_after_it(place):
    process = start(place, "--space", "long.yaml")
    before = read_until(process, "trial 0 ended")
    (folder,) = (place / "home" / "searches").iterdir()
    journal = (folder / JOURNAL_NAME).read_bytes()
    read_until(process, "starts")
    kill_trials(process)
    output = finish(process)
    check_nothing_is_lost_or_doubled(place)
    assert (folder / JOURNAL_NAME).read_bytes().startswith(journal)
    assert "trial 0 rung" in before
    assert "trial 0 " not in output.partition("confirmation")[0]


def check_only_greedy_trials_failed(result, reason):
    """Those with more than 16 hidden units, each for the reason; the others ended well."""
    greedy = [trial for trial in result["trials"] if trial["settings"]["hidden"] > 16]
    assert greedy
    for trial in greedy:
        assert trial["status"] == "failed"
        assert reason in trial["reason"]
        assert trial["bits_per_byte"] is None
    others = [trial for trial in result["trials"] if trial not in greedy]
    assert {trial["status"] for trial in others} <= {"completed", "stopped"}
    assert result["finalists"][0]["settings"]["hidden"] == 16


def write_greedy_space(place, hidden):
    """Of which some trials have that many hidden units, the others 16."""
    space = (SPACE % 4608).replace("hidden: 16, ", "")
    (place / "greedy.yaml").write_text(f"{space}  hidden: {{choices: [16, {hidden}]}}\n")


def test_a_trial_that_ray_ends_to_save_the_machine_fails_with_its_reason(place):
    memory = psutil.virtual_memory()
    if memory.available < ROOM + GREEDY_BYTES:
        pytest.skip(f"needs {(ROOM + GREEDY_BYTES) / 1e9:.0f} GB of free memory")
    write_greedy_space(place, GREEDY_HIDDEN)
    used = memory.total - memory.available
    threshold = str((used + ROOM) / memory.total)
    process = start(place, "--space", "greedy.yaml", RAY_memory_usage_threshold=threshold)
    output = finish(process, timeout=480)
    result = check_nothing_is_lost_or_doubled(place)
    check_only_greedy_trials_failed(result, "Ray ended it to save the others")
    assert "Traceback" not in output


def test_a_trial_without_memory_fails_with_its_reason_and_the_search_goes_on(place):
    write_greedy_space(place, 1_000_000_000)
    output = finish(start(place, "--space", "greedy.yaml"))
    result = check_nothing_is_lost_or_doubled(place)
    check_only_greedy_trials_failed(result, "out of memory: it needs")
    assert "out of memory" in output
    assert "Traceback" not in output


def test_a_disk_that_is_full_for_a_while_loses_nothing(place, tmp_path):
    """The search goes on, or ends with one line and goes on with --resume."""
    disk = tmp_path / "home"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        process = start(place, "--space", "long.yaml")
        read_until(process, "rung 1/3")
        filler = disk / "filler"
        fill = ["dd", "if=/dev/zero", f"of={filler}", "bs=4k"]
        assert b"No space left" in subprocess.run(fill, capture_output=True, check=False).stderr
        time.sleep(8)
        filler.unlink()
        output, _ = process.communicate(timeout=240)
        assert "Traceback" not in output
        if process.returncode:
            last = output.strip().splitlines()[-1]
            assert last.startswith("error: ")
            assert "space left" in last
            finish(start(place, "--resume"))
        check_nothing_is_lost_or_doubled(place)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
