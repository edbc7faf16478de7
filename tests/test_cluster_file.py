"""What a search says of a cluster, and a corpus that travels, without any cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smallm import cluster, parcels, results
from smallm.errors import SmallmError
from smallm.plan import Plan, Speed, duration, trials_at_rungs
from smallm.space import load_space
from smallm.tape import Tape
from smallm.token_tape import TokenTape

ROOT = Path(__file__).parents[1]


def test_listed_machines_are_the_head_and_the_workers_of_the_cluster_file(tmp_path):
    assert cluster.listed_machines(tmp_path / "absent.yaml") == []
    provider = yaml.safe_load((ROOT / "cluster.yaml").read_text())["provider"]
    listed = cluster.listed_machines(ROOT / "cluster.yaml")
    assert listed == [provider["head_ip"], *provider["worker_ips"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("provider:", "provider: must be `name: value` lines, found nothing"),
        ("provider: [a]", "provider: must be `name: value` lines, found ['a']"),
        ("provider: {head_ip: 7}", "provider.head_ip: must be text, found 7"),
        ("provider: {worker_ips: }", "provider.worker_ips: must be a list, found nothing"),
        ("provider: {worker_ips: a}", "provider.worker_ips: must be a list, found 'a'"),
        ("provider: {worker_ips: [7]}", "provider.worker_ips: must hold addresses, found 7"),
        ("max_workers: many", "max_workers: must be a whole number, found 'many'"),
        (
            "available_node_types: {head: }",
            "available_node_types.head: must be `name: value` lines, found nothing",
        ),
        (
            "available_node_types: {head: {min_workers: }}",
            "available_node_types.head.min_workers: must be a whole number, found nothing",
        ),
    ],
)
def test_a_part_of_a_cluster_file_that_is_of_another_kind_is_named(content, said, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(content)
    with pytest.raises(SmallmError) as raised:
        cluster.most_machines(file)
    assert str(raised.value) == f"{file}: {said}"


FAR = """#!/bin/sh
# As ssh does it, but on this machine and with another home.
for asked; do :; done
HOME={home} exec setsid sh -c "$asked"
"""
WITHOUT_VENV = """#!/bin/sh
exec {python} -c "import sys; sys.modules['ensurepip'] = None; exec(sys.argv[1])" "$2"
"""


@pytest.fixture
def check(tmp_path):
    """Runs clusters/check.py on a cluster file; its machines are this one, with another home."""
    home, programs = tmp_path / "home", tmp_path / "programs"
    for each in (home / ".ray", tmp_path / "far", programs):
        each.mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("token")
    (home / "key").write_text("key")
    for name, text in {
        "ssh": FAR.format(home=tmp_path / "far"),
        "rsync": "#!/bin/sh\n",
        "python-without-venv": WITHOUT_VENV.format(python=sys.executable),
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(content, python=sys.executable, path=f"{programs}:{os.environ['PATH']}"):
        (tmp_path / "cluster.yaml").write_text(content)
        (tmp_path / "far" / ".bashrc").write_text(
            f"echo welcome; export PATH={programs}:$PATH SMALLM_PYTHON={python}\n"
        )
        done = subprocess.run(
            [sys.executable, ROOT / "clusters" / "check.py", "cluster.yaml"],
            env={"PATH": path, "HOME": str(home), "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    run.programs = programs
    return run


TWO = "provider: {head_ip: 192.0.2.10, worker_ips: [192.0.2.11]}\n"
READY = f"{TWO}auth: {{ssh_user: ubuntu, ssh_private_key: ~/key}}\n"


def test_the_check_asks_each_machine_for_the_python_of_the_installation(check):
    code, said = check(READY)
    assert (code, said) == (0, "all 2 machines are ready for `ray up cluster.yaml`\n")
    for python in (check.programs / "python-without-venv", "/nowhere/python"):
        code, said = check(READY, python=python)
        absent = f"has no {python} with venv (Debian: python3.11-venv)"
        lines = [f"error: {each}: {absent}" for each in ("192.0.2.10", "192.0.2.11")]
        assert (code, said.splitlines()) == (1, lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "auth.ssh_user is missing"),
        ("auth:", "auth: must be `name: value` lines, found nothing"),
        ("auth: {ssh_user: 7}", "auth.ssh_user: must be text, found 7"),
        ("auth: {ssh_user: a}", "auth.ssh_private_key is missing"),
        (READY.replace(TWO, ""), "provider.head_ip is missing"),
        (READY.replace("[192.0.2.11]", ""), "provider.worker_ips: must be a list, found nothing"),
    ],
)
def test_the_check_says_in_a_line_what_is_wrong_with_the_file(content, said, check):
    assert check(content) == (1, f"error: cluster.yaml: {said}\n")


def test_the_check_needs_ssh_and_rsync_here(check, tmp_path):
    line = "this machine has no ssh, rsync, which `ray up` needs here"
    assert check(READY, path=str(tmp_path)) == (1, f"error: {line}\n")


def test_a_machine_that_has_not_joined_is_named_with_the_last_error_of_the_logs(tmp_path):
    why = "ssh: connect to host 192.0.2.12 port 22: No route to host"
    (tmp_path / "monitor.err").write_text(
        f"root@192.0.2.12: Permission denied (publickey).\n{why}\n"
        "Shared connection to 192.0.2.12 closed.\n"
    )
    listed = ["192.0.2.10", "192.0.2.12", "192.0.2.13"]
    missing = cluster.missing_machines(listed, ["192.0.2.10"], logs=tmp_path)
    nothing = f"{tmp_path} says nothing of it"
    assert missing == [("192.0.2.12", why, 2), ("192.0.2.13", nothing, 0)]


def test_a_longer_address_is_not_taken_for_a_shorter_one(tmp_path):
    (tmp_path / "monitor.err").write_text("ssh: connect to host 192.0.2.12 port 22: no route\n")
    (missing,) = cluster.missing_machines(["192.0.2.1"], [], logs=tmp_path)
    assert missing.errors == 0


def machine(errors, why="ssh: no route"):
    return cluster.Missing("192.0.2.12", why, errors)


def test_a_machine_that_fails_again_and_again_is_not_waited_for():
    patience = cluster.Patience(900)
    ended = [now for now in range(0, 900, 5) if patience.ends([machine(now // 5)], now)]
    assert 60 <= ended[0] <= 70


def test_a_machine_that_was_late_and_is_being_installed_is_waited_for():
    patience = cluster.Patience(900)
    assert not any(patience.ends([machine(min(now, 50) // 5)], now) for now in range(0, 900, 5))
    assert patience.ends([machine(10)], 901)


def test_one_that_fails_is_named_while_another_is_waited_for():
    patience = cluster.Patience(900)
    other = cluster.Missing("192.0.2.13", "setting up", 0)
    for now in range(0, 100, 5):
        failing = patience.failing([machine(now // 5), other], now)
        assert not patience.ends([machine(now // 5), other], now)
    assert [each.address for each in failing] == ["192.0.2.12"]


def test_a_failed_installation_is_not_waited_for():
    failed = machine(1, f"192.0.2.12 (w): {cluster.NOT_INSTALLED}: no space left on device")
    assert cluster.Patience(900).ends([failed], 10)


def test_a_search_waits_no_longer_than_it_was_told():
    assert not cluster.Patience(45).ends([machine(0)], 45)
    assert cluster.Patience(45).ends([machine(0)], 46)


def test_machines_with_other_code_are_named():
    seen = [cluster.Seen("192.0.2.10", "aaa", True), cluster.Seen("192.0.2.11", "bbb", True)]
    cluster.require_same_code(seen[:1], "aaa")
    with pytest.raises(SmallmError, match=r"\(aaa\): 192.0.2.11 has bbb; `ray up` installs"):
        cluster.require_same_code(seen, "aaa")


def test_a_missing_token_is_named(tmp_path, monkeypatch):
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert cluster.token_hint().endswith(f"wants it in {token}, where there is none")
    token.write_text("secret")
    assert cluster.token_hint().endswith("wants RAY_AUTH_MODE=token as well")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert cluster.token_hint() == ""


def test_trials_share_a_gpu_and_the_processors_of_its_machine():
    head, worker = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}
    assert results.trial_resources([head, head]) == {"CPU": 1}
    each = results.trial_resources([head, worker], models_per_gpu=4)
    assert each == {"CPU": 2, "GPU": 0.25}
    assert results.slots(each, [head, worker, worker]) == 8  # four on each GPU
    small = {"CPU": 4.0, "GPU": 4.0}
    assert results.trial_resources([worker, small]) == {"CPU": 1, "GPU": 0.25}
    large = {"CPU": 96.0, "GPU": 1.0}
    assert results.trial_resources([large]) == {"CPU": 4, "GPU": 0.25}


def test_a_gpu_without_a_pytorch_for_it_is_named():
    seen = [
        cluster.Seen("192.0.2.10", "aaa", True),
        cluster.Seen("192.0.2.11", "aaa", True, gpu_unused=True),
    ]
    cluster.require_cuda(seen[:1])
    with pytest.raises(SmallmError, match=r"a GPU, but no PyTorch for CUDA: 192\.0\.2\.11;"):
        cluster.require_cuda(seen)


def test_a_cloud_may_grow_and_a_list_may_not(tmp_path):
    file = tmp_path / "cluster.yaml"
    assert cluster.most_machines(file) == 1
    kinds = "{head: {}, gpu_spot: {min_workers: 2, max_workers: 8}}"
    file.write_text(f"max_workers: 6\navailable_node_types: {kinds}\n")
    assert cluster.least_machines(file) == 3
    assert cluster.most_machines(file) == 7
    file.write_text("provider: {type: local, head_ip: a, worker_ips: [b, c]}\nmax_workers: 2\n")
    assert cluster.most_machines(file) == 3


def test_slots_count_whole_trials_on_each_machine():
    machines = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 8.0}, {"CPU": 0.5}]
    assert results.slots({"CPU": 1}, machines) == 11
    assert results.slots({"CPU": 1, "GPU": 0.25}, machines) == 3
    assert results.slots({"CPU": 1}, machines[2:]) == 0
    said = results.too_small({"CPU": 1}, machines[2:])
    assert said == "a trial takes 1 CPU, more than any machine has (0.5 CPU)"


def test_a_tape_that_travelled_in_pieces_is_the_same(bpe_tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(parcels, "PIECE", 1000)
    tape, inner = parcels.folders_of([str(bpe_tokens.folder)])
    places = {tape: tmp_path / tape.name}
    places[inner] = places[tape] / "tokens" / inner.name
    for folder, place in places.items():
        parcels.unpack(place, parcels.pieces(folder))
        files = [path for path in place.rglob("*") if path.is_file() and path.name[0] != "."]
        for path in files:
            assert path.read_bytes() == (folder / path.relative_to(place)).read_bytes()
    arrived = TokenTape(Tape(places[tape]), places[inner])
    assert (arrived.tokens == bpe_tokens.tokens).all()
    parcels.unpack(places[tape], iter([parcels.Piece("other", b"")]))
    assert not (places[tape] / "other").exists()


def test_a_plan_expects_what_successive_halving_leaves():
    space = load_space("quick")
    assert trials_at_rungs(space) == [12, 4, 12 / 9]
    plan = Plan(space, Speed(tokens_per_second=1e4, scoring_seconds=0.0), 4, heldout_bytes=10**6)
    budget = 368_640 * 3
    expected = budget * (12 / 9 + 4 * 2 / 9 + 12 / 9 * 2 / 3)
    assert plan.search_tokens == pytest.approx(expected, rel=1e-6)
    assert plan.search_seconds == pytest.approx(expected / 1e4 / 4, rel=1e-6)
    assert plan.models == 9
    assert plan.confirmation_seconds == pytest.approx(3 * 36.864)
    lines = list(plan.lines({"CPU": 1}, ["192.0.2.10", "192.0.2.11"]))
    assert (
        lines[2] == "each trial takes 1 CPU; 4 run at once on 2 machines (192.0.2.10, 192.0.2.11)"
    )
    assert [duration(each) for each in (3.2, 600, 7200)] == ["4 s", "10 min", "2.0 h"]


def test_the_scripts_of_the_cluster_are_valid_and_ray_takes_the_cluster_file():
    for script in (ROOT / "clusters").glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(content))
    for local in content["file_mounts"].values():
        assert local.startswith("~/.ray/") or (ROOT / local).exists()


@pytest.mark.parametrize(
    ("listed", "most", "pending"), [([], 5, "12"), ([], 2, None), (["a", "b"], 5, None)]
)
def test_a_cluster_that_may_grow_is_asked_for_all_its_machines_at_once(
    listed, most, pending, monkeypatch
):
    from tune import search

    monkeypatch.setattr(search, "nodes", lambda: [{}, {}])
    monkeypatch.setattr(search.cluster, "listed_machines", lambda: listed)
    monkeypatch.setattr(search.cluster, "most_machines", lambda: most)
    monkeypatch.setattr(search.os, "environ", {})
    search.ask_for_machines({"slots_of_largest": 4})
    assert search.os.environ.get("TUNE_MAX_PENDING_TRIALS_PG") == pending


def test_why_a_trial_failed_is_one_line():
    from tune.search import why_failed

    assert why_failed("Traceback ...\n  File ...\nValueError: no\n") == "ValueError: no"
    assert why_failed("") == "the worker died"
    memory = "ray.exceptions.OutOfMemoryError: Task was killed.\n\nRefer to the documentation ..."
    assert why_failed(memory).startswith("out of memory: ")
    again = f"Failure # 1 (occurred at ...)\n{memory}\nFailure # 2 (occurred at ...)\nOSError: x\n"
    assert why_failed(again) == "OSError: x"


def test_a_trial_that_ray_ended_for_memory_is_a_dead_actor_to_tune():
    from types import SimpleNamespace

    import ray
    from ray.tune.execution import tune_controller

    from tune.search import TrialActors, why_failed

    assert issubclass(TrialActors, tune_controller.RayActorManager)  # which make_tuner replaces
    actors = TrialActors.__new__(TrialActors)
    actors._failed_actor_ids, actors._cleanup_actor = set(), lambda **_: None
    told = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda _, error: told.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda _, error: told.append(error))
    actors._actor_task_failed(task, ray.exceptions.OutOfMemoryError("was killed"))
    assert [type(error) for error in told] == [ray.exceptions.RayActorError] * 2
    assert why_failed(str(told[0])).startswith("out of memory: ")
