"""An older file is replaced at once, or not at all."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
import stored

import nettrim_jax as nt
from nettrim_jax.files import encoding, writing

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# saves one of two trees again and again, until it is killed
CHILD = """
import sys
import numpy as np
import nettrim_jax as nt
rng = np.random.default_rng(0)
trees = [{"W": rng.random((600, 500)) * (rng.random((600, 500)) < 0.1)} for _ in "ab"]
print("ready", flush=True)
for k in range(10**6):
    nt.save(sys.argv[1], trees[k % 2], encodings=("bitmask",) if k % 3 else ())
    print(k, flush=True)
"""


def trees():
    """The trees of the child."""
    rng = np.random.default_rng(0)
    return [rng.random((600, 500)) * (rng.random((600, 500)) < 0.1) for _ in "ab"]


def kill(path, moments, rng):
    """Kills a child that saves, at random moments; the file is whole after each."""
    wanted = trees()
    for _ in range(moments):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, path],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu"},
        )
        with child:
            assert child.stdout.readline() == b"ready\n"
            child.stdout.readline()  # it is over the first file, or an older one
            time.sleep(rng.random() * 0.1)
            child.send_signal(signal.SIGKILL)
        found = nt.load(path)["W"]
        assert stored.same(found, wanted[0]) or stored.same(found, wanted[1])


@pytest.mark.slow
def test_killed_at_fifty_moments(tmp_path, rng):
    kill(tmp_path / "file", 50, rng)


def test_killed(tmp_path, rng):
    kill(tmp_path / "file", 1, rng)


def test_every_step_that_fails_leaves_the_older_file(tmp_path, rng, monkeypatch):
    path = tmp_path / "file"
    nt.save(path, {"W": np.ones(30)})
    before = path.read_bytes()
    steps = [(os, "replace"), (os, "fsync"), (encoding, "encode"), (writing, "_copy")]
    for module, name in steps:
        with monkeypatch.context() as patch:

            def fails(*arguments):
                raise OSError(28, "no space left")

            patch.setattr(module, name, fails)
            with pytest.raises(OSError, match="no space left"):
                nt.save(path, {"W": np.zeros(30)})
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["file"]


def test_data_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        inner = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, n=name, f=inner: (done.append(n), f(*a))[1]
        )
    nt.save(tmp_path / "file", np.ones(3))
    assert done == ["fsync", "replace", "fsync"]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    nt.save(link, np.ones(3))
    assert target.read_text() == "precious" and not link.is_symlink()
    other = tmp_path / "other"
    other.symlink_to(link)  # reading through a link is what links are for
    assert stored.same(nt.load(other), np.ones(3))


def test_permissions(tmp_path):
    path = tmp_path / "file"
    nt.save(path, np.ones(3))
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    path.chmod(0o600)
    nt.save(path, np.zeros(3))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nobody_reads_what_is_being_written(tmp_path, monkeypatch):
    path, modes, inner = tmp_path / "file", [], writing._copy
    nt.save(path, np.ones(3))
    path.chmod(0o600)

    def copy(*arguments):
        [beside] = tmp_path.glob("*.tmp")
        modes.append(stat.S_IMODE(beside.stat().st_mode))
        inner(*arguments)

    def opened(name, flags, mode=0o777, inner=os.open):
        handle = inner(name, flags, mode)
        if flags & os.O_CREAT:
            modes.append(stat.S_IMODE(os.stat(handle).st_mode))
        return handle

    monkeypatch.setattr(writing, "_copy", copy)
    monkeypatch.setattr(os, "open", opened)
    nt.save(path, np.zeros(3))
    assert len(modes) >= 2 and set(modes) == {0o600}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_is_closed_before_it_is_replaced(tmp_path, monkeypatch):
    opened, inner = [], writing._copy
    monkeypatch.setattr(
        writing, "_copy", lambda *a: (opened.append(a[1]), inner(*a))[1]
    )

    def replace(source, target, inner=os.replace):
        assert opened[0].closed  # or Windows refuses
        inner(source, target)

    monkeypatch.setattr(os, "replace", replace)
    nt.save(tmp_path / "file", np.ones(3))
    assert stored.same(nt.load(tmp_path / "file"), np.ones(3))


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_folders_that_cannot_be_synced(tmp_path, monkeypatch, code):
    def fsync(handle, inner=os.fsync):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        inner(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if code == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(code)):
            nt.save(tmp_path / "file", np.ones(3))
    else:
        nt.save(tmp_path / "file", np.ones(3))
    assert stored.same(nt.load(tmp_path / "file"), np.ones(3))
    assert os.listdir(tmp_path) == ["file"]


def test_a_long_name(tmp_path):
    path = tmp_path / ("x" * 250)
    nt.save(path, np.ones(3))
    nt.save(path, np.zeros(3))
    assert stored.same(nt.load(path), np.zeros(3))


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nt.save("here", np.ones(3))
    assert stored.same(nt.load("here"), np.ones(3))
    with pytest.raises(FileNotFoundError):
        nt.save(tmp_path / "none" / "file", np.ones(3))
