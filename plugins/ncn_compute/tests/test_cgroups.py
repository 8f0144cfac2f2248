"""Control groups: both versions on an imitated file system, and the real one of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ncn_compute import cgroups
from ncn_compute.cgroups import Hierarchy


def _proc(tmp_path: Path, cgroup: str, mountinfo: str) -> Path:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text(mountinfo)
    return proc


def test_finds_version_1_hierarchies(tmp_path: Path) -> None:
    for path in ("memory/service", "pids"):
        (tmp_path / path).mkdir(parents=True)
    proc = _proc(
        tmp_path,
        "2:pids:/\n1:memory:/service\n0::/\n",
        f"30 25 0:26 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
        f"31 25 0:27 / {tmp_path}/pids rw - cgroup cgroup rw,pids\n"
        f"32 25 0:28 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu\n"
        "33 1 8:1 / / rw - ext4 /dev/vda rw\n",
    )
    assert cgroups.hierarchies(proc) == [
        Hierarchy(1, tmp_path / "memory/service", frozenset({"memory"})),
        Hierarchy(1, tmp_path / "pids", frozenset({"pids"})),
    ]


def test_a_group_that_is_not_visible_falls_back_to_the_top(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    proc = _proc(
        tmp_path,
        "1:memory:/docker/abc\n",
        f"30 25 0:26 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n",
    )
    assert [place.parent for place in cgroups.hierarchies(proc)] == [tmp_path / "memory"]


def test_finds_version_2_and_turns_controllers_on(tmp_path: Path) -> None:
    own = tmp_path / "unified/user/app"
    own.mkdir(parents=True)
    (own / "cgroup.controllers").write_text("cpu memory pids\n")
    (own / "cgroup.subtree_control").write_text("")
    proc = _proc(tmp_path, "0::/user/app\n", f"30 25 0:26 / {tmp_path}/unified rw - cgroup2 cgroup rw,nsdelegate\n")
    assert cgroups.hierarchies(proc) == [Hierarchy(2, own, frozenset({"memory", "pids"}))]
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_version_2_without_controllers_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified/cgroup.controllers").write_text("hugetlb\n")
    (tmp_path / "unified/cgroup.subtree_control").write_text("")
    proc = _proc(tmp_path, "0::/\n", f"30 25 0:26 / {tmp_path}/unified rw - cgroup2 cgroup rw\n")
    assert cgroups.hierarchies(proc) == []


def test_writes_the_limits_of_each_version(tmp_path: Path) -> None:
    for version, files in (
        (1, {"memory.limit_in_bytes": "1000", "memory.memsw.limit_in_bytes": "1000", "pids.max": "7"}),
        (2, {"memory.max": "1000", "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "7"}),
    ):
        place = tmp_path / str(version)
        place.mkdir()
        group = cgroups.create("a/b", 1000, 7, [Hierarchy(version, place, frozenset(cgroups.CONTROLLERS))])
        (directory,) = group.directories
        assert directory.parent == place
        assert "/" not in directory.name.removeprefix("ncn-")
        assert {path.name: path.read_text() for path in directory.iterdir()} == files
        assert group.missing == {}


def test_says_what_is_missing(tmp_path: Path) -> None:
    group = cgroups.create("x", 1000, 7, [])
    assert group.directories == []
    assert set(group.missing) == {"memory", "pids"}
    assert not group.out_of_memory()
    group.remove()

    absent = Hierarchy(2, tmp_path / "absent", frozenset({"pids"}))
    assert "absent" in cgroups.create("x", 1000, 7, [absent]).missing["pids"]


@pytest.mark.parametrize("name", ["memory.events", "memory.oom_control"])
def test_reads_whether_memory_ran_out(tmp_path: Path, name: str) -> None:
    group = cgroups.ControlGroup([tmp_path], {"memory": tmp_path})
    (tmp_path / name).write_text("low 0\noom_kill 0\n")
    assert not group.out_of_memory()
    (tmp_path / name).write_text("low 0\noom_kill 1\n")
    assert group.out_of_memory()


def test_removes_groups_of_makers_that_are_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f"ncn-{gone.pid}-1-x").mkdir()
    (tmp_path / f"ncn-{os.getpid()}-99999-x").mkdir()
    (tmp_path / "ncn-other").mkdir()
    cgroups.create("x", 1000, 7, [Hierarchy(2, tmp_path, frozenset({"pids"}))])
    left = {path.name for path in tmp_path.iterdir()}
    assert f"ncn-{gone.pid}-1-x" not in left
    assert {f"ncn-{os.getpid()}-99999-x", "ncn-other"} <= left


def test_a_real_group_holds_a_process_and_goes_away() -> None:
    group = cgroups.create("test", 64 << 20, 8)
    assert set(group.limits) | set(group.missing) == {"memory", "pids"}
    directories = list(group.directories)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        group.add(child.pid)
        for directory in directories:
            assert str(child.pid) in (directory / "cgroup.procs").read_text().split()
    finally:
        child.communicate(b"\n")
        group.remove()
    assert not any(directory.exists() for directory in directories)
