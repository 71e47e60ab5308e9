"""The run folder: crashes at every point of a commit, full disks, strangers, second writers, changed models and data."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.conftest import EPS

import sparring as sp
import tiny
from sparring.core.errors import InputError, LoadError
from sparring.evaluation import (
    Audit,
    Evidence,
    RunMismatchError,
    StoreError,
    audit,
    resume,
    running,
    shards,
    store,
)
from sparring.evaluation.comparing import differences

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and limits")
QUICK: dict[str, Any] = {"attacks": ["fgsm", sp.PGD(steps=5)], "shard": 20, "checks": False, "curve": False}


def run(folder: Path, **how: Any) -> Audit:
    """A small audit: three shards, two attacks."""
    given = {"victim": tiny.trained(), "data": tiny.pictures(60, seed=9), "threat": sp.Linf(EPS), **QUICK, **how}
    return audit(given.pop("victim"), given.pop("data"), given.pop("threat"), run=folder, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return run(tmp_path_factory.mktemp("whole") / "run").evidence


# -- crashes -----------------------------------------------------------------------------------------------------------

POINTS = ("before the file", "draft written", "file renamed", "rows inserted", "committed")


def die_at(point: str, nth: int, folder: str) -> None:
    """The child: a run that kills itself at the nth time it reaches a point of the commit."""
    left = [nth]

    def maybe(reached: str) -> None:
        if reached == point:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    write, sync, transaction = store.write_shard, shards.sync_folder, store.Store._transaction

    def write_shard(*args: Any) -> str:
        maybe("before the file")
        digest = write(*args)
        maybe("file renamed")
        return digest

    def replace(self: Path, target: Path) -> Path:
        if self.suffix == ".part" and "safetensors" in self.name:
            maybe("draft written")
        os.replace(self, target)
        return target

    import contextlib

    @contextlib.contextmanager
    def watched(self: store.Store) -> Any:
        with transaction(self):
            yield
            maybe("rows inserted")
        maybe("committed")

    store.write_shard, Path.replace, store.Store._transaction = write_shard, replace, watched  # type: ignore[method-assign, assignment]
    shards.sync_folder = sync
    torch.set_num_threads(1)
    run(Path(folder))


def in_a_child(function: Any, *args: Any) -> int | None:
    """The exit code of a process that calls a function."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sparring.evaluation", "sparring.attacks", "scipy.special", __name__])
    child = context.Process(target=function, args=args)
    child.start()
    child.join()
    return child.exitcode


@posix
@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_of_a_commit_loses_that_unit_at_most(point: str, tmp_path: Path, whole: Evidence) -> None:
    folder = tmp_path / "run"
    for nth in (1, 2):
        assert in_a_child(die_at, point, nth, str(folder)) == -signal.SIGKILL
        with sqlite3.connect(folder / "evidence.sqlite") as db:
            units = db.execute("SELECT step, shard, met, file FROM units").fetchall()
            for step, shard, met, file in units:
                table = "samples WHERE shard = ?" if step == 0 else "evidence WHERE sample / 20 = ? AND step = ?"
                values = [shard] if step == 0 else [shard, step]
                assert db.execute(f"SELECT COUNT(*) FROM {table}", values).fetchone() == (met,)
                assert file is None or (folder / "adversarial" / file).exists()
            rows = db.execute("SELECT COUNT(DISTINCT step * 100 + sample / 20) FROM evidence").fetchone()[0]
            assert rows == sum(1 for step, *_ in units if step > 0)
    found = run(folder)
    assert found.complete
    assert differences(whole, found.evidence) == []
    kept = {unit["file"] for unit in found.evidence.units if unit["file"]}
    assert {path.name for path in (folder / "adversarial").iterdir()} == kept


def test_files_without_rows_are_removed_and_files_with_rows_are_missed(tmp_path: Path, whole: Evidence) -> None:
    folder = tmp_path / "run"
    run(folder)
    strays = [folder / "adversarial" / name for name in ("02-pgd-00009.safetensors", "x.safetensors.part")]
    for stray in strays:
        stray.write_bytes(b"half")
    assert differences(run(folder).evidence, whole) == []
    assert not any(stray.exists() for stray in strays)
    gone = next((folder / "adversarial").iterdir())
    gone.unlink()
    with pytest.raises(StoreError, match=r"lacks 1 of its .* put them back"):
        run(folder)


def test_a_changed_file_is_no_evidence(tmp_path: Path) -> None:
    found = run(tmp_path / "run")
    case = found.failures()[0]
    unit = next(u for u in found.evidence.units if u["step"] == case.step and u["shard"] == case.sample // 20)
    path = tmp_path / "run" / "adversarial" / unit["file"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match="content has changed"):
        found.evidence.pair(case.step, case.sample)


# -- resuming ----------------------------------------------------------------------------------------------------------


class StopError(RuntimeError):
    pass


class Fails(torch.nn.Module):
    """The tiny network, which raises at the nth forward after it was armed."""

    def __init__(self) -> None:
        super().__init__()
        net = tiny.trained().net
        assert isinstance(net, torch.nn.Module)
        self.net = net
        self.left = -1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise StopError("the model broke down")
        out: torch.Tensor = self.net(x)
        return out


def test_a_unit_that_fails_leaves_the_others_and_the_run_goes_on(tmp_path: Path) -> None:
    net = Fails().eval()
    victim = sp.Victim(net, name="fails")
    victim.query(tiny.pictures(4, seed=9)[0])
    net.left = 14
    with pytest.raises(sp.SparringError, match="the model broke down"):
        run(tmp_path / "run", victim=victim)
    partial = Evidence.open(tmp_path / "run")
    assert 3 < len(partial.units) < 9
    assert partial.sessions[-1]["how"].startswith("failed:")
    assert not Audit(partial).complete
    assert Audit(partial).verdict.result == "inconclusive"
    found = resume(tmp_path / "run", victim, tiny.pictures(60, seed=9))
    assert found.complete
    assert [s["how"] for s in found.evidence.sessions][1:] == ["finished"]
    assert differences(found.evidence, run(tmp_path / "other", victim=victim).evidence) == []


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, whole: Evidence) -> None:
    from sparring.core import events
    from sparring.evaluation.progress import UnitFinished

    def interrupt(event: events.Event) -> None:
        if isinstance(event, UnitFinished) and event.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), events.listening(interrupt):
        run(tmp_path / "run")
    partial = Evidence.open(tmp_path / "run")
    assert len(partial.units) == 5
    assert partial.sessions[-1]["how"] == "interrupted"
    found = run(tmp_path / "run", batch_size=3)
    assert differences(found.evidence, whole, inputs=False) == []


def test_what_was_given_in_python_must_be_given_again(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(InputError, match="victim="):
        resume(tmp_path / "run")
    with pytest.raises(InputError, match="data="):
        resume(tmp_path / "run", tiny.trained())


def test_a_run_known_by_names_resumes_by_itself(digits_run: Path) -> None:
    before = Evidence.open(digits_run)
    found = resume(digits_run)
    assert differences(before, found.evidence) == []
    assert len(found.evidence.sessions) == len(before.sessions) + 1
    with pytest.raises(InputError, match="by the name 'digits'"):
        resume(digits_run, tiny.trained())


def test_another_model_other_data_or_another_plan_are_refused_and_change_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.name != "writer.lock" and path.is_file()}
    x, y = tiny.pictures(60, seed=9)
    for change, says in (
        ({"victim": sp.Victim(tiny.network(5), name="tiny")}, "another victim"),
        ({"data": (x.flip(0), y.flip(0))}, "another data"),
        ({"data": (x, (y + 1) % 4)}, "another data"),
        ({"seed": 1}, "another plan"),
        ({"threat": sp.Linf(0.05)}, "another plan"),
    ):
        with pytest.raises(RunMismatchError, match=says):
            run(folder, **change)
    with pytest.raises(RunMismatchError, match="another victim"):
        resume(folder, sp.Victim(tiny.network(5), name="tiny"), (x, y))
    assert {path: path.read_bytes() for path in before} == before


def test_a_missing_model_is_an_error_that_loses_nothing(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net = tiny.trained().net
    assert isinstance(net, torch.nn.Module)
    weights = tmp_path / "net.safetensors"
    save_file(net.state_dict(), weights)
    run(tmp_path / "run", victim=f"{weights}@tiny:network")
    weights.unlink()
    with pytest.raises(LoadError, match=r"net\.safetensors"):
        resume(tmp_path / "run", data=tiny.pictures(60, seed=9))
    assert Audit.open(tmp_path / "run").complete


# -- folders -----------------------------------------------------------------------------------------------------------


def test_only_one_writer(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder)
    header = store.read_header(folder)
    writer = store.Store(folder, header)
    try:
        with pytest.raises(StoreError, match=f"is being written by process {os.getpid()}"):
            store.Store(folder, header)
        assert Evidence.open(folder).complete  # reading is free
    finally:
        writer.close("finished")
    store.Store(folder, header).close("finished")


@posix
def test_the_lock_of_a_killed_writer_is_free(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from sparring.evaluation.lock import WriterLock
        lock = WriterLock(Path(sys.argv[1]))
        print("held", flush=True)
        sys.stdin.read()
        """
    path = tmp_path / "writer.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        from sparring.evaluation.lock import WriterLock

        with pytest.raises(StoreError, match=f"process {holder.pid}"):
            WriterLock(path)
        holder.kill()
    WriterLock(path).release()


def test_strangers_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"holds thesis\.tex"):
        run(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(StoreError, match="no run folder"):
        Evidence.open(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(StoreError, match="another release"):
        Evidence.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Evidence.open(tmp_path)


def within_file_sizes(limit: int, folder: str, told: str) -> None:
    """The child: a run in which a file longer than `limit` bytes cannot be written, as on a full disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        run(Path(folder))
        answer = "done"
    except StoreError as error:
        answer = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path(told).write_text(answer)


@posix
@pytest.mark.slow
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path, whole: Evidence) -> None:
    folder, said, kept = tmp_path / "run", [], []
    for limit in (600, 4_000, 30_000, 60_000, 90_000, 1_000_000):
        assert in_a_child(within_file_sizes, limit, str(folder), str(tmp_path / "told")) == 0
        said.append((tmp_path / "told").read_text())
        if (folder / "run.json").exists():
            kept.append(len(Evidence.open(folder).units))
        if said[-1] == "done":
            break
    assert said[-1] == "done"
    assert len(said) > 3
    assert all("Every finished unit is safe" in line and "sparring resume" in line for line in said[:-1])
    assert kept == sorted(kept)
    assert 0 < kept[-2] < kept[-1]
    assert differences(whole, Evidence.open(folder)) == []


def test_texts_are_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digest = shards.write_shard(path, [3, 5], ["süß", "b"], ["süss", 'b"\n'])
    read = shards.read_shard(path, digest)
    assert read["sample"].tolist() == [3, 5]
    assert (read["original"], read["adversarial"]) == (["süß", "b"], ["süss", 'b"\n'])
    with pytest.raises(InputError, match="cannot be kept"):
        shards.write_shard(path, [1], [object()], [object()])
    with pytest.raises(StoreError, match="cannot be read"):
        shards.read_shard(tmp_path / "none")


def test_an_audit_without_a_folder_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.tempfile, "tempdir", str(tmp_path))
    found = audit(tiny.trained(), tiny.pictures(20, seed=9), sp.Linf(EPS), **QUICK)
    original, _ = found.evidence.pair(found.failures()[0].step, found.failures()[0].sample)
    assert original.shape == (1, 6, 6)
    assert len(list(tmp_path.iterdir())) == 1
    del found
    assert list(tmp_path.iterdir()) == []
