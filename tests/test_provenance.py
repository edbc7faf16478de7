"""Where figures come from: how many processors a process may use."""

import os

import pytest

from smallm.provenance import usable_cpus

ALLOWED = len(os.sched_getaffinity(0))


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="ascii")
    return folder


def newer(quota):
    return {"cpu.max": f"{quota} 100000\n"}


def older(quota):
    return {"cpu/cpu.cfs_quota_us": f"{quota}\n", "cpu/cpu.cfs_period_us": "50000\n"}


@pytest.mark.parametrize("files", [newer(100_000), newer(20_000), older(50_000), older(10_000)])
def test_a_container_with_a_quota_of_a_processor_or_less_has_one(tmp_path, files):
    assert usable_cpus(write(tmp_path, files)) == 1


@pytest.mark.skipif(ALLOWED < 2, reason="needs two processors")
@pytest.mark.parametrize("files", [newer(150_000), newer(200_000), older(75_000), older(100_000)])
def test_a_part_of_a_processor_counts_as_one(tmp_path, files):
    assert usable_cpus(write(tmp_path, files)) == 2


@pytest.mark.parametrize("files", [{}, newer("max"), older(-1), newer(10**9), older(10**9)])
def test_without_a_quota_or_with_a_large_one_all_allowed_processors_count(tmp_path, files):
    assert usable_cpus(write(tmp_path, files)) == ALLOWED


def test_half_of_the_files_of_the_older_version_is_no_quota(tmp_path):
    write(tmp_path, {"cpu/cpu.cfs_quota_us": "10000"})
    assert usable_cpus(tmp_path) == ALLOWED
