"""The search: from a text to a crowned model, on one machine or a Ray cluster.

    python tune/search.py                              # embedded corpus, space `quick`
    python tune/search.py --source folder --path notes --space full
    python tune/search.py --resume                     # go on after a crash or Ctrl-C
    python tune/search.py --dry-run                    # how much, where, how long
    ray submit cluster.yaml tune/search.py -- --space full
    ray job submit --working-dir . -- python tune/search.py

What is distributed and how; every decision is a function of `smallm`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "5")
os.environ.setdefault("RAY_task_oom_retries", "2")  # of the confirmation; else Ray goes on for ever
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # of its three we keep one

import optuna
import ray
from ray import tune
from ray.air.execution._internal import RayActorManager
from ray.tune.execution import tune_controller
from ray.tune.logger import JsonLoggerCallback
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from smallm import cluster, confirmation, parcels, plan, results
from smallm.baselines import BASELINES, names_in
from smallm.confirmation import Confirmed
from smallm.errors import SmallmError, in_one_line
from smallm.home import open_home
from smallm.ledger import (
    Folders,
    Ledger,
    asked_for,
    built_corpus,
    new_search,
    opened,
    search_to_resume,
)
from smallm.options import run_program, settings_options, storage_option
from smallm.progress import SearchDisplay
from smallm.provenance import code_digest, require_same_code, usable_cpus
from smallm.results import METRIC, MILESTONE
from smallm.settings import CorpusSettings, Settings
from smallm.space import Space, load_space
from smallm.storage import Storage, fetch_search, trying_again
from smallm.token_tape import TokenTape
from smallm.tracking import Tracker, local_uri, metrics_of, stop_reason
from smallm.training import PENALTY

# Of one trial. Until Ray knows that a machine is gone it may place a trial there again and again.
MOST_FAILURES = 5
START_SECONDS = 300.0  # for the process of a trial to start: torch may come from a slow disk
MAY_DIFFER = ("resume", "storage", "wait", "trials_per_gpu")  # when a search goes on
TELL_EVERY = 60.0  # seconds
MOST_ASKED = 20  # times that the sampler may suggest what was tried, in a space of few configs
PACKED = "report"  # the name of all that a trial reports, as one line of JSON
log = logging.getLogger(__name__)


def seen_here(job: dict[str, Any]) -> tuple[str, bool, bool]:
    """The digest of this machine's SmaLLM, whether it sees the folder of the search, and whether
    it has a GPU that its PyTorch was not built for."""
    from smallm.provenance import code_digest  # all that is asked of a SmaLLM that may be another

    here = ray.get_runtime_context().get_node_id()
    unused = False
    if here in job["gpu_machines"]:
        import torch

        unused = not torch.backends.cuda.is_built()
    return code_digest(), on_shared_disk(job), unused


def on_shared_disk(job: dict[str, Any]) -> bool:
    """Whether this machine sees what the driver keeps the search in."""
    if job["storage"]:
        return True  # each machine was asked to write there
    mark = Path(job["mark"])
    return mark.is_file() and mark.read_text(encoding="utf-8") == job["marked"]


def opened_here(settings: Settings, folders: Folders, job: dict[str, Any]) -> TokenTape:
    """The tokens of a config, brought to this machine first if it has no disk with them."""
    require_same_code(job["digest"])
    for folder, sent in job["parcels"]:
        parcels.unpack(Path(folder), map(ray.get, sent))
    if job["storage"]:
        storage = Storage(job["storage"])
        for name in job["stored"]:
            storage.fetch(name, Path(job["home"]) / name)
    return opened(settings, folders)


@contextmanager
def state_of(checkpoint: tune.Checkpoint | None) -> Iterator[Path | None]:
    """Where a trial goes on from; fetched, and gone after the block, if it is in a bucket."""
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        state = Path(folder) / "state"
        yield state if state.exists() else None


def packed(report: dict[str, Any]) -> dict[str, Any]:
    """A report as Ray takes it, which keeps statistics of every number for the whole search."""
    return {METRIC: report[METRIC], MILESTONE: report[MILESTONE], PACKED: json.dumps(report)}


def unpacked(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial has reported; nothing of one that has not."""
    report: dict[str, Any] = json.loads(result[PACKED]) if PACKED in result else {}
    return report


def train_trial(
    config: dict[str, Any], *, space: Space, folders: Folders, job: dict[str, Any]
) -> None:
    """One config with all its replicates, as Ray Tune runs it: reports until told to stop."""
    from smallm.hardware import out_of_memory, release_memory
    from smallm.training import Training, no_memory

    settings = space.config(config["point"])
    tokens = opened_here(settings, folders, job)
    selection, _ = tokens.tape.heldout(space.heldout_ratios())
    training, last, why = None, None, None
    try:
        with state_of(tune.get_checkpoint()) as state:
            training = Training(
                settings,
                tokens,
                selection=selection,
                threads=job["threads"],
                device=job["device"],
                resume_from=state,
            )
        for last in training:
            report = results.reported(last, reduction=space.reduction)
            if report["finished"] or not on_shared_disk(job):
                tune.report(packed(report))
            else:
                with tempfile.TemporaryDirectory() as folder:
                    training.save(Path(folder) / "state")
                    checkpoint = tune.Checkpoint.from_directory(folder)
                    trying_again(partial(tune.report, packed(report), checkpoint=checkpoint))
    except (MemoryError, RuntimeError) as error:
        if not (why := out_of_memory(error)):
            raise
    finally:
        del training  # others share the device, and this process goes on with another trial
        release_memory(job["device"])
    if why:
        failed = no_memory(settings, why, last)
        tune.report(packed(results.reported(failed, reduction=space.reduction)))


@ray.remote(max_retries=2)
def train_replicate(
    settings: Settings, space: Space, folders: Folders, job: dict[str, Any]
) -> confirmation.Replicate:
    """One finalist with one fresh seed."""
    from smallm.hardware import out_of_memory, release_memory

    tokens = opened_here(settings, folders, job)
    selection, final = tokens.tape.heldout(space.heldout_ratios())
    place = {"threads": job["threads"], "device": job["device"]}
    try:
        return confirmation.confirm(settings, tokens, selection=selection, final=final, **place)
    except (MemoryError, RuntimeError) as error:
        if not (why := out_of_memory(error)):
            raise
    finally:
        release_memory(job["device"])
    return confirmation.without_memory(settings.training.seeds[0], why)


class OptunaSearcher(Searcher):
    """Optuna's TPE behind Ray Tune; stopped trials are told as pruned, failed ones as bad.

    Ray's own OptunaSearch tells a stopped trial as complete with its early value.
    """

    def __init__(self, space: Space, name: str) -> None:
        super().__init__(metric=METRIC, mode="min")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=space.seeds[0], n_startup_trials=6)
        self.study = optuna.create_study(study_name=name, sampler=sampler)
        self.study.enqueue_trial(space.default_point())
        self.space = space
        self.asked: dict[str, optuna.trial.Trial] = {}
        self.told: dict[str, set[int]] = {}
        self.exhausted = False  # whether nothing new was found the last time

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The next config, a new one if there may be one left; the default one comes first."""
        states = optuna.trial.TrialState
        before = self.study.get_trials(
            deepcopy=False, states=(states.RUNNING, states.COMPLETE, states.PRUNED)
        )
        known = [each.params for each in before]
        trial = self.study.ask()
        for _ in range(0 if self.exhausted else MOST_ASKED):
            if self.space.suggest(trial) not in known:
                break
            self.study.tell(trial, state=states.FAIL)  # which the sampler leaves out
            trial = self.study.ask()
        point = self.space.suggest(trial)
        self.exhausted = point in known
        self.asked[trial_id] = trial
        return {"number": len(known), "point": point}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Passes an intermediate value on, once."""
        step = int(unpacked(result)["tokens"])
        if trial_id in self.asked and step not in self.told.setdefault(trial_id, set()):
            self.asked[trial_id].report(result[METRIC], step=step)
            self.told[trial_id].add(step)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells how a trial ended; Ray passes the last result of a stopped one only here."""
        if trial_id not in self.asked:
            return
        if error or result is None:
            # It was tried again and again: were it told as failed, it could be suggested again.
            self.study.tell(self.asked.pop(trial_id), PENALTY)
            self.told.pop(trial_id, None)
            return
        self.on_trial_result(trial_id, result)
        trial = self.asked.pop(trial_id)
        del self.told[trial_id]
        if unpacked(result)["finished"]:
            self.study.tell(trial, result[METRIC])
        else:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def save(self, checkpoint_path: str) -> None:
        """Writes the study and what is still running."""
        with open(checkpoint_path, "wb") as file:
            file.write(ray.cloudpickle.dumps((self.study, self.asked, self.told)))

    def restore(self, checkpoint_path: str) -> None:
        """Reads what `save` wrote, by this program, in the user's own home."""
        with open(checkpoint_path, "rb") as file:
            self.study, self.asked, self.told = ray.cloudpickle.loads(file.read())


class Listener(tune.Callback):
    """Passes what trials do to the display and to MLflow, from the driver."""

    def __init__(
        self, tracker: Tracker | None, display: SearchDisplay | None, space: Space
    ) -> None:
        self.tracker, self.display, self.space = tracker, display, space
        self.begun = False

    def __reduce__(self) -> Any:
        return Listener, (None, None, self.space)  # Ray pickles its Tuner; a restored one gets ours

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Tune's loop turns: at first, a resumed search has trials that have ended."""
        self._begin(trials)

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        """All trials have ended; where they had before, Tune's loop has not turned."""
        self._begin(trials)

    def _begin(self, trials: list[Any]) -> None:
        if not self.begun:
            self.begun = True
            known = [(trial, unpacked(trial.last_result or {})) for trial in trials]
            self.display.spent_before += math.fsum(last.get("seconds", 0) for _, last in known)
            self.display.resumed(
                {each.config["number"]: last for each, last in known if each.is_finished()}
            )

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial begins or goes on."""
        number = trial.config["number"]
        self.tracker.start_run(
            f"trial/{trial.trial_id}",
            name=f"trial {number}",
            parent="search",
            params=self.space.config(trial.config["point"]).flat(),
            tags={"smallm.kind": "trial", "smallm.trial": trial.trial_id},
        )
        self.display.started(number, trial.config["point"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial reached an evaluation."""
        report = unpacked(result)
        key = f"trial/{trial.trial_id}"
        self.tracker.log(key, metrics_of(report), step=int(report["tokens"]))
        self.display.scored(trial.config["number"], report)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial spent its budget or was stopped."""
        self._ended(trial, error=None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial failed."""
        file = Path(trial.error_file) if trial.error_file else None
        told = file.read_text(encoding="utf-8") if file and file.exists() else ""
        self._ended(trial, error=why_failed(told))

    def _ended(self, trial: Any, *, error: str | None) -> None:
        last = unpacked(trial.last_result or {})
        failure = last.get("failure", "")
        failed = results.most_failed(last)
        status, reason = stop_reason(
            tokens=int(last.get("tokens", 0)),
            budget=self.space.config(trial.config["point"]).training.training_tokens,
            failure=failure if failed else "",
            error=error,
        )
        reason += f"; {failure}" if failure and not failed else ""
        self.tracker.end_run(f"trial/{trial.trial_id}", status=status, reason=reason)
        self.display.ended(trial.config["number"], last, reason)
        # Of every number Ray keeps statistics, of all trials to the end of the search; nobody asks.
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()


def why_failed(told: str) -> str:
    """The reason of a trial's last failure in one line, from what Ray tells of all of them."""
    last = told.rpartition("Failure # ")[2]
    if ray.exceptions.OutOfMemoryError.__name__ in last:
        return "out of memory: its machine had too little left, and Ray ended it to save the others"
    return (last.strip().splitlines() or ["the worker died"])[-1]


class TrialActors(RayActorManager):
    """Ray's actors of trials, of which none keeps a search waiting or ends it.

    Ray 2.60 has an error of its own for an actor that it ended for want of memory, which Tune takes
    for unexpected: it would end the whole search. Here that one has died as others do. And where
    the network is cut while an actor starts, Ray may wait for it for ever: what has not started in
    time is ended, so that the trial starts again. Tune offers no public way to either.
    """

    def __init__(self, resource_manager: Any) -> None:
        super().__init__(resource_manager)
        self._since: dict[Any, float] = {}  # for each actor the start was asked for; inf: it came

    def next(self, timeout: float | None = None) -> bool:
        self._end_lost_starts()
        return bool(super().next(timeout))

    def _end_lost_starts(self) -> None:
        now = time.monotonic()
        for actor, (handle, _) in self._live_actors_to_ray_actors_resources.items():
            if now < self._since.setdefault(actor, now) + START_SECONDS:
                continue
            started = [*self._tracked_actors_to_state_futures[actor]]  # or heard of in a moment
            if started and not ray.wait(started, timeout=0)[0]:
                log.warning("a trial has not started in %g s: it is started again", START_SECONDS)
                ray.kill(handle)
            self._since[actor] = now

    def _actor_start_resolved(self, tracked_actor: Any, future: Any) -> None:
        self._since[tracked_actor] = math.inf
        super()._actor_start_resolved(tracked_actor, future)

    def _cleanup_actor(self, tracked_actor: Any) -> None:
        self._since.pop(tracked_actor, None)
        super()._cleanup_actor(tracked_actor)

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, ray.exceptions.OutOfMemoryError):
            name = type(exception).__name__
            exception = ray.exceptions.RayActorError(error_msg=f"{name}: {exception}")
        super()._actor_task_failed(tracked_actor_task, exception)


def make_tuner(
    ledger: Ledger, job: dict[str, Any], *, trial: Callable[..., None] = train_trial
) -> tune.Tuner:
    """A new Tuner, or the interrupted one of this search folder; `trial` is what it runs."""
    folder, space, folders = ledger.folder, ledger.space, ledger.folders
    callbacks = [Listener(ledger.tracker, ledger.display, space), JsonLoggerCallback()]
    resources = job["resources"]
    trainable = tune.with_resources(
        tune.with_parameters(trial, space=space, folders=folders, job=job), resources
    )
    root, filesystem = str(folder), None
    if ledger.storage:
        root = ledger.storage.path(f"searches/{folder.name}")
        filesystem = ledger.storage.filesystem
    path = f"{root}/tune"
    tune_controller.RayActorManager = TrialActors
    if tune.Tuner.can_restore(path, storage_filesystem=filesystem):
        tuner = tune.Tuner.restore(
            path,
            trainable,
            resume_unfinished=True,
            resume_errored=True,
            storage_filesystem=filesystem,
        )
        # Ray offers no public way to give a restored Tuner live callbacks.
        tuner._local_tuner._run_config.callbacks = callbacks
        return tuner
    rungs = len(space.config(space.default_point()).training.evaluate_at)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearcher(space, folder.name),
            scheduler=tune.schedulers.ASHAScheduler(
                time_attr=MILESTONE,
                metric=METRIC,
                mode="min",
                grace_period=1,
                reduction_factor=space.reduction,
                max_t=space.reduction ** (rungs - 1) + 1,
            ),
            num_samples=space.trials,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=root,
            storage_filesystem=filesystem,
            callbacks=callbacks,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            failure_config=tune.FailureConfig(max_failures=MOST_FAILURES),
        ),
    )


def trial_records(grid: tune.ResultGrid, ledger: Ledger) -> list[dict[str, Any]]:
    """All trials as the result record holds them, in the order they were suggested."""
    records = []
    for result, trial in zip(grid, grid._experiment_analysis.trials, strict=True):
        frame = result.metrics_dataframe
        rows = [] if frame is None or PACKED not in frame else frame.to_dict("records")
        records.append(
            results.trial_record(
                id=trial.trial_id,
                number=trial.config["number"],
                settings=trial.config["point"],
                rows=[unpacked(row) for row in rows],
                error=why_failed(str(result.error)) if result.error else None,
                # Ray calls a trial terminated that Ctrl-C ended; only ours know better
                interrupted=f"trial/{trial.trial_id}" not in ledger.tracker.ended,
                seeds=ledger.space.seeds,
                machine=(result.metrics or {}).get("node_ip"),
            )
        )
    return sorted(records, key=lambda record: int(record["number"]))


def with_resources(task: Any, job: dict[str, Any]) -> Any:
    """A remote function that takes what a trial takes."""
    resources = job["resources"]
    return task.options(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))


def confirm(ledger: Ledger, record: dict[str, Any], job: dict[str, Any]) -> list[Confirmed]:
    """Every finalist with every fresh seed, as many at once as fit."""
    finalists, seeds = ledger.finalists(record), ledger.space.confirmation_seeds
    wanted = [(each, seed) for seed in seeds for each in finalists]
    done: dict[tuple[str, int], confirmation.Replicate] = {}
    for finalist, seed, replicate in _confirmed(ledger, wanted, job):
        done[finalist.name, seed] = replicate
        ledger.display.confirmed(finalist.name, replicate, len(done), len(wanted))
    return [Confirmed(each, tuple(done[each.name, seed] for seed in seeds)) for each in finalists]


def _confirmed(
    ledger: Ledger, wanted: list[tuple[confirmation.Finalist, int]], job: dict[str, Any]
) -> Iterator[tuple[confirmation.Finalist, int, confirmation.Replicate]]:
    """The replicates as they end: those of an earlier run first, each new one is kept."""
    task = with_resources(train_replicate, job)
    place = {"space": ledger.space, "folders": ledger.folders, "job": job}
    waiting = {}
    for finalist, seed in wanted:
        if replicate := ledger.kept(finalist, seed):
            yield finalist, seed, replicate
        else:
            settings = finalist.settings.replace(seeds=[seed])
            waiting[task.remote(settings, **place)] = (finalist, seed)
    while waiting:
        (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
        finalist, seed = waiting.pop(ready)
        try:
            replicate = ray.get(ready)
            ledger.keep(finalist, replicate)
        except ray.exceptions.OutOfMemoryError as error:
            replicate = confirmation.without_memory(seed, why_failed(type(error).__name__))
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
            raise SmallmError(f"confirmation failed: {why}; go on with --resume") from error
        yield finalist, seed, replicate


def start_ray() -> bool:
    """Joins the Ray of RAY_ADDRESS or of this machine, or starts one here; True if it joined."""
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    joined = bool(address)
    hint = cluster.token_hint() if address else ""
    try:
        if address and ":" in address:  # Ray itself would try for minutes
            host, port = address.rpartition("/")[2].rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=10).close()
        try:
            own = {} if address else {"num_cpus": usable_cpus(), "include_dashboard": False}
            ray.init(**quiet, **own)
        except ValueError:  # `ray start` has run here: that Ray knows its processors
            ray.init(**quiet)
            joined = True
        # A failed trial is told in a line by the Listener, and a storage that takes nothing by the
        # Mirror; Ray would print whole tracebacks.
        for name in ("ray.tune", "ray.train._internal.storage"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        where = f" at {address}" if address else ""
        raise SmallmError(f"Ray cannot start{where}: {in_one_line(error)}{hint}") from None
    return joined


def nodes() -> list[dict[str, Any]]:
    """The machines that are there."""
    return [node for node in ray.nodes() if node["Alive"]]


def wait_for_machines(patience: float, say: Callable[[str], None]) -> None:
    """Waits for the machines of the cluster file, and names those that do not come, and why."""
    listed, fewest = cluster.listed_machines(), cluster.least_machines()
    waiting, start, told = cluster.Patience(patience), time.monotonic(), 0.0
    while True:
        joined = [node["NodeManagerAddress"] for node in nodes()]
        missing = cluster.missing_machines(listed, joined)
        waited = time.monotonic() - start
        complete = not missing and (listed or len(joined) >= fewest)
        if complete or waiting.ends(missing, waited):
            break
        if waited - told > TELL_EVERY:
            told = waited
            awaited = ", ".join(each.address for each in missing) or f"{fewest} machines"
            say(f"waiting for {awaited} to join; `--wait` says how long")
            for each in waiting.failing(missing, waited):
                say(f"{each.address} does not seem to come ({each.why})")
        time.sleep(1)
    for address, why, _ in missing:
        say(f"{address} has not joined ({why}); the search goes on without it")
    if not listed and len(joined) < fewest:
        say(
            f"only {len(joined)} of the {fewest} machines that the cluster starts with have joined "
            f"in {patience:.0f} s; trials take what these have (wait longer with --wait)"
        )


def on_every_machine(
    asked: Callable[..., Any], *given: Any, say: Callable[[str], None]
) -> dict[str, Any]:
    """What every machine answers, by its address; one that dies meanwhile is named."""
    waiting = {}
    for node in nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(asked).options(num_cpus=0, scheduling_strategy=there)
        waiting[node["NodeManagerAddress"]] = task.remote(*given)
    answers = {}
    for address, answer in waiting.items():
        try:
            answers[address] = ray.get(answer)
        except ray.exceptions.RayError as error:
            if address not in [node["NodeManagerAddress"] for node in nodes()]:
                say(f"{address} has left; the search goes on without it")
                continue
            why = in_one_line(getattr(error, "cause", None) or error)
            raise SmallmError(f"{address}, a machine of the cluster, fails: {why}") from error
    return answers


def reaches(uri: str, mark: str) -> None:
    """Raises SmallmError where this machine cannot use the storage of the driver."""
    Storage(uri).check(mark)


def make_job(
    space: Space,
    folders: Folders,
    mark: Path,
    *,
    home: Path,
    storage: Storage | None,
    say: Callable[[str], None],
    joined: bool,
    per_gpu: int = 4,
) -> dict[str, Any]:
    """What every trial must know: resources, threads, device, code digest, where its data are.

    The mark is a file of the driver's own: machines that do not see it get the data sent, unless
    there is a storage to fetch them from. A head by itself cannot tell whether machines that join
    later will see it.
    """
    total = ray.cluster_resources()
    present = nodes()
    machines = [node["Resources"] for node in present]
    resources = results.trial_resources(machines, models_per_gpu=per_gpu)
    slots = results.slots(resources, machines)
    if not slots:
        raise SmallmError(results.too_small(resources, machines))
    job = {
        "resources": resources,
        "threads": max(1, int(resources["CPU"])),
        "device": "cuda" if "GPU" in resources else "cpu",
        "digest": code_digest(),
        "concurrent": min(slots, space.trials),
        "slots_of_largest": max(results.slots(resources, [machine]) for machine in machines),
        "cpus": int(total.get("CPU", 0)),
        "gpus": int(total.get("GPU", 0)),
        "gpu_machines": [node["NodeID"] for node in present if node["Resources"].get("GPU")],
        "mark": str(mark),
        "marked": mark.read_text(encoding="utf-8"),
        "sharing": "",
        "parcels": [],
        "home": str(home),
        "storage": storage.uri if storage else None,
        "stored": [
            str(folder.relative_to(home)) for folder in parcels.folders_of(folders.values())
        ],
    }
    asked = on_every_machine(seen_here, job, say=say)
    seen = [cluster.Seen(address, *answer) for address, answer in asked.items()]
    cluster.require_same_code(seen, job["digest"])
    cluster.require_cuda(seen)
    if storage:
        with storage.marked() as mark_there:
            on_every_machine(reaches, storage.uri, mark_there, say=say)
    elif not all(each.shared for each in seen):
        job["sharing"] = plan.NOT_SHARED
    elif joined and len(seen) == 1:
        job["sharing"] = plan.MAY_NOT_SHARE
    if job["sharing"]:
        job["parcels"] = [
            (str(folder), [ray.put(piece) for piece in parcels.pieces(folder)])
            for folder in parcels.folders_of(folders.values())
        ]
    return job


def ask_for_machines(job: dict[str, Any]) -> None:
    """Has Ray Tune wait for as many trials as a growing cluster has room for.

    A cloud starts machines for trials that wait. Of those Ray Tune keeps one, which would bring
    machine after machine, each after minutes of installing.
    """
    more = cluster.most_machines() - len(nodes())
    if more > 0 and not cluster.listed_machines():
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(more * job["slots_of_largest"]))


@ray.remote
def measured_speed(space: Space, folders: Folders, job: dict[str, Any]) -> plan.Speed:
    """How fast the default config trains where a trial may run."""
    settings = space.config(space.default_point())
    tokens = opened_here(settings, folders, job)
    selection, _ = tokens.tape.heldout(space.heldout_ratios())
    place = {"threads": job["threads"], "device": job["device"]}
    return plan.calibrate(settings, tokens, selection, **place)


def dry_run(
    home: Path,
    space: Space,
    corpus: CorpusSettings,
    uri: str,
    patience: float,
    storage: Storage | None,
    per_gpu: int,
) -> None:
    """Prints the plan of a search; only the corpus that it builds stays, for the search."""
    tape, folders = built_corpus(corpus, space, home=home, storage=storage)
    heldout = sum(tape.bytes(part) for part in tape.heldout(space.heldout_ratios()))
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=home) as folder:
        mark = Path(folder) / "mark"
        mark.write_text(uuid.uuid4().hex, encoding="utf-8")
        try:
            if joined := start_ray():
                wait_for_machines(patience, print)
            place = {"home": home, "storage": storage, "say": print, "joined": joined}
            job = make_job(space, folders, mark, per_gpu=per_gpu, **place)
            speed = ray.get(with_resources(measured_speed, job).remote(space, folders, job))
            machines = [node["NodeManagerAddress"] for node in nodes()]
        except ray.exceptions.RayError as error:
            raise SmallmError(f"no plan: {in_one_line(error)}") from error
        finally:
            ray.shutdown()
    planned = plan.Plan(space, speed, job["concurrent"], heldout)
    for line in planned.lines(job["resources"], machines):
        print(line)
    for line in plan.places(home, uri, storage=job["storage"], sharing=job["sharing"]):
        print(line)


def run(ledger: Ledger, patience: float, per_gpu: int) -> int:
    """Searches, confirms, crowns, reports; gives the exit code."""
    ledger.build_corpus()
    start = time.perf_counter()
    confirmed: list[Confirmed] = []
    try:
        if joined := start_ray():
            wait_for_machines(patience, ledger.say)
        mark = ledger.folder / "search.json"
        place = {"home": ledger.home, "storage": ledger.storage, "say": ledger.say}
        place |= {"joined": joined, "per_gpu": per_gpu}
        job = make_job(ledger.space, ledger.folders, mark, **place)
        if job["sharing"]:
            ledger.say(job["sharing"])
        ledger.display.concurrent = job["concurrent"]
        ask_for_machines(job)
        tuner = make_tuner(ledger, job)
        with ledger.display.bar:
            grid = tuner.fit()
        trials = trial_records(grid, ledger)
        ledger.seconds["search"] = time.perf_counter() - start
        record = ledger.searched(trials, cpus=job["cpus"], gpus=job["gpus"])
        interrupted = len(trials) < ledger.space.trials or any(
            trial["status"] == "interrupted" for trial in trials
        )
        if not interrupted:
            ledger.keep_record(record)
            try:
                confirmed = confirm(ledger, record, job)
            except KeyboardInterrupt:
                interrupted = True
        wall = time.perf_counter() - start
        ledger.seconds["confirmation"] = wall - ledger.seconds["search"]
    finally:
        ray.shutdown()
    if confirmed:
        ledger.crown(confirmed, record)
    ledger.publish(record, confirmed, wall=wall, interrupted=interrupted)
    try:
        if record["champion"] and ledger.baselines:
            ledger.compare(confirmed, record)
    finally:
        ledger.finish(record, interrupted=interrupted)
    if interrupted:
        return 130
    if record["champion"] is None:
        raise SmallmError(record["conclusion"][0])
    return 0


def check_same_search(context: click.Context) -> None:
    """Raises SmallmError for options that a search which goes on cannot have."""
    given = click.core.ParameterSource.COMMANDLINE
    others = [
        each.opts[0]
        for each in context.command.params
        if each.name not in MAY_DIFFER and context.get_parameter_source(str(each.name)) == given
    ]
    if others:
        raise SmallmError(
            f"--resume goes on with the search as it was asked for: leave out {', '.join(others)}"
        )


@click.command(context_settings={"max_content_width": 100})
@settings_options("corpus", "tokens", "model", "training")
@click.option("--space", default="quick", help="A space that ships with SmaLLM, or a YAML file.")
@click.option("--trials", type=click.IntRange(1), help="Number of configs, instead of the space's.")
@click.option("--confirmed", type=click.IntRange(1), help="How many of the best to confirm.")
@click.option(
    "--compare-with",
    metavar="LIST",
    default=",".join(BASELINES),
    help="Pretrained models or folders, separated by commas; `none`. [default: all baselines]",
)
@click.option("--name", help="Name of the search; by default corpus, space and time.")
@click.option(
    "--dry-run", "dry", is_flag=True, help="Print how much would be trained, where, how long."
)
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=900,
    show_default=True,
    help="Seconds that the machines of a cluster file have to join; a minute is enough for those "
    "that cannot be reached.",
)
@click.option(
    "--trials-per-gpu",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Trials that share a GPU; small models leave most of one idle.",
)
@click.option("--resume", is_flag=False, flag_value="newest", help="Go on with a search, by name.")
@storage_option("tapes, checkpoints and results are")
@click.pass_context
def main(
    context: click.Context,
    given: dict[str, Any],
    space: str,
    compare_with: str,
    name: str | None,
    dry: bool,
    wait: float,
    resume: str | None,
    storage: str | None,
    trials_per_gpu: int,
    **sizes: Any,
) -> None:
    """Search settings of a SmaLLM on a corpus, confirm the best, crown and compare a champion.

    Settings given as flags or in --config are fixed for all trials.
    """
    home = open_home()
    shared = Storage(storage) if storage else None
    if shared:
        shared.check()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or local_uri(home)
    if resume:
        check_same_search(context)
        if shared:
            fetch_search(shared, home, resume)
        folder = search_to_resume(home, resume)
    else:
        searched, corpus = asked_for(load_space(space), given, **sizes)
        if dry:
            dry_run(home, searched, corpus, uri, wait, shared, trials_per_gpu)
            return
        others = [] if compare_with == "none" else names_in(compare_with)
        folder = new_search(home, searched, corpus, name=name, baselines=others)
    ledger = Ledger(folder, uri=uri, storage=shared)
    patience = 5  # seconds that MLflow gets to record the rest, where the search failed
    try:
        code = run(ledger, wait, trials_per_gpu)
        patience = 60
        sys.exit(code)
    finally:
        ledger.close(timeout=patience)


if __name__ == "__main__":
    run_program(main)
