"""What may go wrong around a run: kills, files, locks, other checkpoints, devices, mirrors."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate
import ncvqvae
import prior
from data import InputError
from helpers import (
    HERE,
    TINY,
    linear_training,
    no_figures,
    own_data,
    run_all,
    shell,
    shell_environment,
    tiny_config,
    ts_bytes,
    zip_bytes,
)

# ---- killed and interrupted ----


# Forks a process for each command, as one that has imported everything: imports take longer than a
# tiny stage. It dies by kill -9 in front of the n-th rename of a finished file: log, config, one
# resume file per step (SECONDS < 0), checkpoint, metrics, figures. n = 0 never dies and draws none.
DRIVER = """
import importlib, json, math, os, sys, time, traceback
sys.path.insert(0, sys.argv[1])
import data, evaluate, ncvqvae, prior
data.torch.optim.AdamW([data.torch.zeros(1)])  # a third of torch is imported here
data.Training.SECONDS = -1

def run(moment, command, cwd, _):
    calls, replace = [0], os.replace
    def dying_replace(a, b):
        calls[0] += 1
        if calls[0] == moment:
            os.kill(os.getpid(), 9)
        replace(a, b)
    os.replace = dying_replace
    if moment == 0:
        evaluate.draw_figures = lambda *inputs: None
    os.chdir(cwd)
    os.environ["OUT"] = cwd
    for number, name in (1, "stdout"), (2, "stderr"):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = command
    try:
        data.run_command(importlib.import_module(command[0][:-3]).main)
    except SystemExit as stop:
        print(stop.code, file=sys.stderr)
        return 1
    return 0

for line in sys.stdin:
    request = json.loads(line)
    child, seconds = os.fork(), request[-1]
    if not child:
        code = 1
        try:
            code = run(*request)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    end = time.time() + (seconds or math.inf)
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(0.01)
        if time.time() > end:
            os.kill(child, 9)
    print(os.waitstatus_to_exitcode(done[1]), flush=True)
"""


@functools.cache
def driver():
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DEVICE": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(HERE)],
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # ends with its stdin


def drive(moment, command, cwd, timeout=None):
    """A command in a process of its own, killed at a moment or after `timeout` seconds."""
    print(json.dumps([moment, command, str(cwd), timeout]), file=driver().stdin, flush=True)
    code = int(driver().stdout.readline())
    return subprocess.CompletedProcess(
        command, code, *((Path(cwd) / name).read_text() for name in ("stdout", "stderr"))
    )


def stages(folder):
    run = str(folder / "own/vibcreg-slice/seed1")
    flags = [
        "--dataset",
        str(folder / "own.npz"),
        "--method",
        "vibcreg",
        "--augmentation",
        "slice",
        "--optimizer",
        "muon",
        "--prior-dropout",
        "0.1",
        *TINY,
    ]
    return [["ncvqvae.py", run, *flags], ["prior.py", "train", run], ["evaluate.py", "run", run]]


def outcome(folder):
    """All a run computes: tensors of checkpoints, metrics without seconds, samples, the log."""
    run = folder / "own/vibcreg-slice/seed1"
    tensors = {
        f"{s} {k}": v
        for s in ("stage1", "stage2")
        for k, v in torch.load(run / f"{s}.pt", weights_only=True)["state"].items()
    }
    metrics = {
        k: v
        for k, v in json.loads((run / "metrics.json").read_text()).items()
        if k in evaluate.METRICS and "seconds" not in k
    }
    with np.load(run / "samples.npz") as file:
        return tensors, metrics, file["X"], [r for r in data.read_log(run) if "step" in r]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    own_data(folder)
    for command in stages(folder):
        done = drive(0, command, folder)
        assert done.returncode == 0, done.stderr
    return folder


def assert_ends_as(uninterrupted, folder):
    ours, theirs = outcome(folder), outcome(uninterrupted)
    assert all(torch.equal(v, theirs[0][k]) for k, v in ours[0].items()) and ours[1] == theirs[1]
    # no step is logged twice or lost
    assert np.array_equal(ours[2], theirs[2]) and ours[3] == theirs[3]
    assert not list(folder.rglob("*.resume.pt"))


@pytest.mark.parametrize(
    "moments",
    [
        (5, 6, 12),
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in ((1, 1, 1), (2, 3, 2), (3, 4, 5), (8, 8, 9), (9, 2, 15))
        ),
    ],
)
def test_killed_at_any_moment_a_rerun_ends_bit_for_bit_the_same(tmp_path, uninterrupted, moments):
    own_data(tmp_path)
    # 3 batches an epoch: in the midst of one
    for moment, command in zip(moments, stages(tmp_path), strict=True):
        assert drive(moment, command, tmp_path).returncode == -9
        done = drive(0, command, tmp_path)
        assert done.returncode == 0, done.stderr
    assert_ends_as(uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_random_times_a_rerun_ends_bit_for_bit_the_same(tmp_path, uninterrupted, seed):
    own_data(tmp_path)
    chance = random.Random(seed)
    for command in stages(tmp_path):
        drive(0, command, tmp_path, timeout=chance.uniform(0.1, 4))  # it may have ended before
        done = drive(0, command, tmp_path)
        assert done.returncode == 0, done.stderr
    assert_ends_as(uninterrupted, tmp_path)


def test_an_interrupted_training_takes_no_step_twice(tmp_path, monkeypatch):
    """Nor a second of them off the count. Started over, it would end the same."""
    run, taken, stop, update = tmp_path / "own/r/s", [], [0], data.Training.step_done
    config = tiny_config(
        dataset=own_data(tmp_path), stage1_steps=5, stage2_steps=5, fcn_steps=5, cas_epochs=5
    )
    d = data.load_dataset(config.dataset)

    def interrupted(self, loss, **terms):
        if self.step == stop[0]:
            raise KeyboardInterrupt
        taken.append(self.step)
        update(self, loss, **terms)

    monkeypatch.setattr(data.Training, "step_done", interrupted)
    monkeypatch.setattr(data.Training, "SECONDS", -1)  # a resume file a step
    for name, file, train in (
        ("stage1", "stage1.pt", lambda: ncvqvae.train_stage1(run, config)),
        ("stage2", "stage2.pt", lambda: prior.train_stage2(run, config)),
        ("fcn-*", "../../fcn-*.pt", lambda: evaluate.dataset_fcn(tmp_path / "own", d, config)),
        (
            "cas",
            None,
            lambda: evaluate.classification_accuracy_score(d.x_train, d.y_train, d, config, run),
        ),
    ):
        taken.clear()
        stop[0] = 3
        with pytest.raises(KeyboardInterrupt):
            train()
        (resume,) = (tmp_path / "own").rglob(f"{name}.resume.pt")
        saved = data.load_checkpoint(resume)
        torch.save(saved | dict(device="cuda"), resume)
        with pytest.raises(InputError, match=r"resume.pt: interrupted on cuda, this is cpu; go on"):
            train()
        torch.save(saved | dict(seconds=saved["seconds"] + 1000), resume)
        stop[0] = None
        train()
        assert taken == [0, 1, 2, 3, 4], name
        if file:
            (path,) = run.glob(file)
            assert 1000 < data.load_checkpoint(path)["seconds"] < 2000


def test_no_draw_of_training_comes_from_the_global_generator(tmp_path, monkeypatch):
    """Which a resumed run would find in another state."""
    update, states = data.Training.step_done, []
    config = tiny_config(
        dataset=own_data(tmp_path),
        method="barlow",
        augmentation="warp+phase",
        views=2,
        bands=2,
        stage1_steps=3,
        stage2_steps=3,
        token_temperature=1.0,
    )
    for disturbance in (0, 3):

        def disturbed(*inputs, disturbance=disturbance, **terms):
            update(*inputs, **terms)
            torch.rand(disturbance)

        monkeypatch.setattr(data.Training, "step_done", disturbed)
        run = tmp_path / str(disturbance)
        models = ncvqvae.train_stage1(run, config), prior.train_stage2(run, config)
        states.append({**models[0].state_dict(), **models[1].state_dict()})
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


# ---- folders, files and locks ----


def one_line(done, *words):
    """A command that was refused: exit code 1, one line, no traceback, which holds the words."""
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_folders_and_files_that_cannot_be_used_are_one_line(tmp_path):
    own_data(tmp_path)
    stage1, stage2, scores = stages(tmp_path)
    run = Path(stage1[1])
    run.mkdir(parents=True)
    for content in ("[]", "null", "3", "{", '{"dataset": "x", "nonsense": 1}', '{"seed": "one"}'):
        (run / "config.json").write_text(content)
        one_line(drive(0, stage2, tmp_path), "config.json: ")
    (run / "config.json").unlink()
    one_line(drive(0, scores, tmp_path), "config.json")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below", "/proc/runs"):
        one_line(
            drive(0, [stage1[0], str(folder), *stage1[2:]], tmp_path),
            str(folder),
            "cannot be read or written",
        )
    full = subprocess.run(
        [
            "bash",
            "-c",
            'ulimit -f 0; exec "$@"',
            "x",
            sys.executable,
            str(HERE / "ncvqvae.py"),
            *stage1[1:],
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "DEVICE": "cpu"},
    )
    one_line(full)
    # the latter: torch 2.9
    assert re.search("log.jsonl: cannot be written|disk: .*temporary directory", full.stderr)
    assert not [p for p in run.iterdir() if p.name != ".lock"]


def test_a_full_disk_leaves_the_last_good_file(tmp_path):
    path = tmp_path / "good.pt"
    data.write_atomic(path, lambda f: torch.save({"a": torch.ones(3)}, f))
    code = """if True:
        import sys, resource, signal
        sys.path.insert(0, sys.argv[1])
        import data, torch
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
        big = {"a": torch.ones(10**6)}
        data.run_command(lambda: data.write_atomic(sys.argv[2], lambda f: torch.save(big, f)))"""
    one_line(
        subprocess.run(
            [sys.executable, "-c", code, str(HERE), str(path)], capture_output=True, text=True
        ),
        "cannot be written",
        "File too large",
    )
    assert torch.equal(data.load_checkpoint(path)["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["good.pt"]


def test_nothing_half_written_is_left_behind(tmp_path):
    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    class Interrupted:  # torch.save raises another error than its file does
        def __init__(self, file):
            self.write = lambda part: interrupted(file)

    for write in (interrupted, lambda file: torch.save({}, Interrupted(file))):
        with pytest.raises(KeyboardInterrupt):
            data.write_atomic(tmp_path / "x.pt", write)
        assert not list(tmp_path.iterdir())
    (tmp_path / "stage1.resume.pt.tmp").write_bytes(b"half")  # by a process that was killed
    linear_training(tmp_path, torch.nn.Linear(1, 1)).finish(tmp_path / "stage1.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "stage1.pt"]


def test_two_processes_that_write_one_file_leave_one_whole_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"

    def slow(file):
        file.write(b"first")
        with monkeypatch.context() as patch:  # the other one is faster
            patch.setattr(data.os, "getpid", lambda: 0)
            data.write_atomic(path, lambda other: other.write(b"second, whole"))
        assert path.read_bytes() == b"second, whole"
        file.write(b", whole")

    data.write_atomic(path, slow)
    assert path.read_bytes() == b"first, whole"
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            data.os, name, lambda *a, name=name, real=real: calls.append(name) or real(*a)
        )
    data.write_json(tmp_path / "x.json", {})
    assert calls == ["fsync", "replace"]


def test_what_a_kill_left_of_a_finished_training_goes(tmp_path):
    run, config = tmp_path / "r", tiny_config(stage1_steps=1, dataset=own_data(tmp_path))
    ncvqvae.train_stage1(run, config)
    prior.train_stage2(run, config)
    before = {path.name for path in run.iterdir()}
    for stage in ("stage1", "stage2"):  # killed between the checkpoint and its end
        (run / f"{stage}.resume.pt").write_bytes(b"large")
        (run / f"{stage}.resume.pt.7.tmp").write_bytes(b"half")
    ncvqvae.train_stage1(run, config)
    prior.train_stage2(run, config)
    assert {path.name for path in run.iterdir()} == before


def test_a_disk_that_is_full_at_the_end_costs_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr(data.Training, "SECONDS", -1)
    training = linear_training(tmp_path, torch.nn.Linear(1, 1), steps=2)
    for _ in training:
        training.step_done(torch.ones(()))
    (tmp_path / "no folder").touch()
    with pytest.raises(InputError, match="cannot be written"):
        training.finish(tmp_path / "no folder" / "stage1.pt")
    assert linear_training(tmp_path, torch.nn.Linear(1, 1), steps=2).step == 2


def test_a_resume_file_is_saved_a_minute(tmp_path, monkeypatch):
    saves, now = [], [0.0]
    monkeypatch.setattr(data.time, "time", lambda: now[0])
    training = linear_training(tmp_path, torch.nn.Linear(1, 1), steps=13)
    save = training._save
    training._save = lambda: saves.append(training.step) or save()
    for _ in training:
        now[0] += 25
        training.step_done(torch.ones(()))
    assert saves == [3, 6, 9, 12]


def test_one_ctrl_c_ends_the_grid(tmp_path):
    words = [own_data(tmp_path), "naive", "none", "1,2", *TINY, "--stage1-steps=1000000"]
    # Who starts these tests in the background may have them ignore Ctrl-C, and what they start.
    heeding = """if True:
        import os, signal, sys
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execvp("bash", ["bash", *sys.argv[1:]])"""
    grid = subprocess.Popen(
        [sys.executable, "-c", heeding, str(HERE / "run.sh"), *words],
        env=shell_environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.time() + 120
    while not (tmp_path / "runs/own/naive-none/seed1/log.jsonl").exists() and time.time() < end:
        time.sleep(0.1)
    os.killpg(grid.pid, signal.SIGINT)
    try:
        said = grid.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        os.killpg(grid.pid, signal.SIGKILL)
        raise
    assert grid.returncode == 130 and "interrupted; run the same command again" in said
    assert said.count("== ") == 1  # the second seed did not begin


def test_a_run_that_fails_ends_neither_the_grid_nor_goes_on_itself(tmp_path):
    bad = tmp_path / "runs/own/naive-none/seed1"
    bad.mkdir(parents=True)
    (bad / "stage1.pt").write_bytes(b"cut")
    done = shell(own_data(tmp_path), "naive", "none", "1,2", *TINY, "--stages=1", cwd=tmp_path)
    assert done.returncode == 1
    assert f"1 of 2 runs failed: {bad}; see above" in done.stderr
    assert "naive-none/seed2 |" in done.stdout
    assert done.stderr.count("stage1.pt: cannot be used") == 1  # no other stage was tried
    assert "config.json" not in done.stderr


def test_a_reader_that_left_is_no_error():
    code = "import data; data.run_command(lambda: print(1))"
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -c '{code}' | true",
        shell=True,
        executable="/bin/bash",
        cwd=HERE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_process_on_a_run_folder_is_refused(tmp_path):
    own_data(tmp_path)
    stage1, stage2, scores = stages(tmp_path)
    with data.hold(stage1[1]):
        one_line(drive(0, stage1, tmp_path), "another process works on it")
    assert drive(0, stage1, tmp_path).returncode == 0
    with data.hold(stage1[1]):
        for command in (stage1, stage2, scores):
            one_line(drive(0, command, tmp_path), "another process works on it")


def test_a_run_folder_of_any_name_is_evaluated(tmp_path):
    own_data(tmp_path)
    run = str(tmp_path / "mine")  # it keeps its own classifiers, whose lock is another one
    stage1, stage2, scores = stages(tmp_path)
    for command in (["ncvqvae.py", run, *stage1[2:]], ["prior.py", "train", run]):
        assert drive(0, command, tmp_path).returncode == 0
    assert drive(0, ["evaluate.py", "run", run], tmp_path, timeout=60).returncode == 0
    assert data.read_json(tmp_path / "mine/metrics.json")["fid"] >= 0


def test_waiting_for_the_classifier_is_said(tmp_path):
    code = """if True:
        import sys
        sys.path.insert(0, sys.argv[1])
        import data
        with data.hold(sys.argv[2], wait=True):
            print("mine")"""
    with data.hold(tmp_path):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(HERE), str(tmp_path)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        line = other.stderr.readline()
    assert "waiting for the process that works on it" in line
    assert other.communicate(timeout=60)[0] == "mine\n"


def test_a_classifier_is_trained_once_and_by_one_process_at_a_time(tmp_path, monkeypatch):
    held, hold = [], data.hold
    monkeypatch.setattr(evaluate, "hold", lambda *a, **k: held.append((a, k)) or hold(*a, **k))
    dataset = data.load_dataset(own_data(tmp_path))
    _, first, _ = evaluate.dataset_fcn(tmp_path, dataset, tiny_config())
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "train_fcn", lambda *inputs: pytest.fail("trained again"))
        evaluate.dataset_fcn(tmp_path, dataset, tiny_config())
    assert held == [((tmp_path, ".classifiers.lock"), {"wait": True})] * 2
    other = data.load_dataset(own_data(tmp_path, n_test=17))
    _, second, _ = evaluate.dataset_fcn(tmp_path, other, tiny_config())
    assert first != second  # other data of the same name


def test_without_locks_of_the_system_a_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "fcntl", None)  # Windows
    with data.hold(tmp_path):
        assert "no lock; start no second process on it" in capsys.readouterr().err


# ---- other checkpoints, settings and data ----


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil_was_here",))


def test_foreign_checkpoints_are_refused_and_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "stage1.pt"
    torch.save({"identity": Evil()}, path)
    evil = path.read_bytes()
    torch.save({"a": torch.ones(1000)}, path)
    cut = path.read_bytes()[:1500]
    torch.save(torch.ones(3), path)
    tensor = path.read_bytes()
    torch.save({"identity": {}, "state": {}, "data": {"length": 40}}, path)

    def resume():
        return linear_training(tmp_path, torch.nn.Linear(1, 1))

    for content in (evil, cut, tensor, path.read_bytes(), b"", b"text"):
        for name, load in (
            ("stage1.pt", lambda: ncvqvae.load_stage1(tmp_path)),
            ("stage1.resume.pt", resume),
        ):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InputError, match=f"{name}: .*(remove it|made with)") as error:
                load()
            assert "\n" not in str(error.value)
    assert not (tmp_path / "evil_was_here").exists()


def interrupt(monkeypatch, train):
    """Stop a training after two steps, which a resume file has."""
    step_done = data.Training.step_done

    def stop(training, loss, **terms):
        if training.step == 2:
            raise KeyboardInterrupt
        step_done(training, loss, **terms)

    with monkeypatch.context() as patch:
        patch.setattr(data.Training, "SECONDS", -1)
        patch.setattr(data.Training, "step_done", stop)
        with pytest.raises(KeyboardInterrupt):
            train()


def change_codebook(run):
    """By as much as another processor would."""
    checkpoint = data.load_checkpoint(run / "stage1.pt")
    for name, weight in checkpoint["state"].items():
        if "codebook" in name:
            weight += 1e-6
    torch.save(checkpoint, run / "stage1.pt")


def test_an_interrupted_run_goes_on_with_its_own_settings_and_data_alone(tmp_path, monkeypatch):
    run = tmp_path / "r"
    config = tiny_config(dataset=own_data(tmp_path), stage1_steps=4)
    interrupt(monkeypatch, lambda: ncvqvae.train_stage1(run, config))
    message = "resume.pt: made with stage1_lr = 0.001, this run has 0.1"
    with pytest.raises(InputError, match=message):
        ncvqvae.train_stage1(run, dataclasses.replace(config, stage1_lr=0.1))
    own_data(tmp_path, n_test=17)
    with pytest.raises(InputError, match="resume.pt: made from other data"):
        ncvqvae.train_stage1(run, config)


def test_an_interrupted_prior_goes_on_with_its_own_stage_1_alone(tmp_path, monkeypatch):
    run = tmp_path / "r"
    config = tiny_config(dataset=own_data(tmp_path), stage1_steps=1, stage2_steps=4)
    ncvqvae.train_stage1(run, config)
    interrupt(monkeypatch, lambda: prior.train_stage2(run, config))
    change_codebook(run)
    with pytest.raises(InputError, match="stage2.resume.pt: made on the tokens of another stage1"):
        prior.train_stage2(run, config)


def test_later_stages_of_other_settings_are_refused_before_stage_1_is_trained(tmp_path):
    run, config = tmp_path / "r", tiny_config(stage1_steps=1, dataset=own_data(tmp_path))
    ncvqvae.train_stage1(run, config)
    prior.train_stage2(run, dataclasses.replace(config, stage2_steps=1))
    (run / "stage1.pt").unlink()
    with pytest.raises(InputError, match="stage2.pt: made with stage2_steps = 1, this run has 2"):
        ncvqvae.train_stage1(run, dataclasses.replace(config, stage2_steps=2))
    assert not (run / "stage1.pt").exists()


def test_settings_that_this_data_cannot_have_are_said_in_a_line(tmp_path, capsys):
    run, config = tmp_path / "r", tiny_config(stage1_steps=1, dataset=own_data(tmp_path))
    with pytest.raises(InputError, match="--n-fft 32: own is shorter"):
        ncvqvae.train_stage1(run, dataclasses.replace(config, n_fft=32))
    ncvqvae.train_stage1(run, config)
    for share, what in ((0.0, "no class"), (1.0, "a class")):
        settings = dataclasses.replace(config, stage2_steps=1, class_dropout=share)
        prior.train_stage2(run, settings)
        said = f"--class-dropout {share}: samples of {what} are not learnt"
        assert said in capsys.readouterr().err
        (run / "stage2.pt").unlink()


def test_metrics_of_weights_that_are_gone_are_measured_anew(tmp_path, monkeypatch, capsys):
    no_figures(monkeypatch)
    run = tmp_path / "own/naive-none/seed1"
    config = tiny_config(stage1_steps=1, stage2_steps=1, dataset=own_data(tmp_path))
    m = run_all(run, config)
    assert evaluate.evaluate_run(run) == m  # finished before
    for name in ("stage1.pt", "stage2.pt"):
        checkpoint = data.load_checkpoint(run / name)
        if name == "stage1.pt":
            for weight_name, weight in checkpoint["state"].items():
                if "decoder" in weight_name and weight.is_floating_point():
                    weight *= 1.5
        torch.save(checkpoint | {"seconds": checkpoint["seconds"] + 1}, run / name)
        again = evaluate.evaluate_run(run)
        assert again["seconds_" + name[:6]] == m["seconds_" + name[:6]] + 1
        assert again["recon"] != m["recon"]
        assert evaluate.evaluate_run(run) == again
    assert capsys.readouterr().err.count("finished before") == 3
    (run / "stage2.pt").unlink()  # to save room
    assert evaluate.evaluate_run(run) == again


def test_another_dataset_or_config_is_refused_and_nothing_is_lost(tmp_path, monkeypatch):
    no_figures(monkeypatch)
    run, own = tmp_path / "own/naive-none/seed1", own_data(tmp_path)
    config = tiny_config(stage1_steps=1, stage2_steps=1, dataset=own)
    m = run_all(run, config)
    with pytest.raises(
        InputError, match="stage1.pt: made with stage1_lr = 0.001, this run has 0.1"
    ):
        ncvqvae.train_stage1(run, dataclasses.replace(config, stage1_lr=0.1))
    for fields, message in (
        ({"stage2_lr": 0.1}, "stage2.pt: made with stage2_lr = 0.001, this run has 0.1"),
        ({"cas_epochs": 2}, "metrics.json: made with cas_epochs = 1, this run has 2"),
    ):
        other = dataclasses.replace(config, **fields)
        with pytest.raises(InputError, match=message):
            ncvqvae.train_stage1(run, other)
        assert data.read_config(run) == config
        with pytest.raises(InputError, match=message):
            prior.train_stage2(run, other)
            evaluate.evaluate_run(run, other)
    ncvqvae.train_stage1(run, dataclasses.replace(config, validate_epochs=3, stages=1))
    again = evaluate.evaluate_run(run)["cas"]
    assert again == m["cas"] == data.read_json(run / "metrics.json")["cas"]
    ncvqvae.train_stage1(run, config)
    own_data(tmp_path, length=33)  # the file changes under the run
    for again in (
        lambda: ncvqvae.train_stage1(run, config),
        lambda: prior.train_stage2(run),
        lambda: evaluate.evaluate_run(run),
    ):
        with pytest.raises(InputError, match="stage1.pt: made from other data"):
            again()
    stopped = tmp_path / "stopped/own/naive-none/seed1"  # more is asked than was measured
    assert run_all(stopped, dataclasses.replace(config, stages=1, dataset=own))["cas"] is None
    ncvqvae.train_stage1(stopped, config)
    assert evaluate.evaluate_run(stopped)["cas"] is not None
    change_codebook(run)
    with pytest.raises(InputError, match="stage2.pt: made on the tokens of another stage1.pt"):
        prior.load_stage2(run)
    with pytest.raises(InputError, match="stage2.pt: not there"):
        (run / "stage2.pt").unlink()
        prior.load_stage2(run)


def test_a_classifier_of_other_samples_is_trained_anew(tmp_path):
    """Samples differ by a bit where threads or the GPU do: what was begun is of no use."""
    d = data.load_dataset(own_data(tmp_path))
    config = tiny_config(fcn_steps=2, fcn_batch=10)
    digest = hashlib.sha256(d.x_train.numpy().tobytes() + d.y_train.numpy().tobytes()).hexdigest()
    identity = config.settings_of("fcn") | {"sha256": digest}
    for other in ({"sha256": "of others"}, {"fcn_steps": 3}):
        torch.save({"identity": identity | other}, tmp_path / "cas.resume.pt")
        _, training = evaluate.train_fcn(d.x_train, d.y_train, 3, config, tmp_path, "cas")
        assert training.step == 2


def test_moved_data_is_the_same_data_and_weights_that_are_not_finite_are_refused(tmp_path):
    run, config = tmp_path / "r", tiny_config(stage1_steps=1, dataset=own_data(tmp_path))
    ncvqvae.train_stage1(run, config)
    before = (run / "stage1.pt").stat().st_mtime_ns
    (tmp_path / "own.npz").rename(tmp_path / "moved.npz")
    config = dataclasses.replace(config, dataset=str(tmp_path / "moved.npz"))
    ncvqvae.train_stage1(run, config)
    assert (run / "stage1.pt").stat().st_mtime_ns == before and data.read_config(run) == config
    checkpoint = data.load_checkpoint(run / "stage1.pt")
    checkpoint["state"]["bands.0.quantizer.sums"][3, 1] = math.nan
    torch.save(checkpoint, run / "stage1.pt")
    with pytest.raises(InputError, match="stage1.pt: cannot be used .weights not finite"):
        ncvqvae.load_stage1(run)


def test_settings_that_came_later_have_their_default_and_gone_ones_are_named(tmp_path):
    run, own = tmp_path / "own/naive-none/seed1", own_data(tmp_path)
    config = tiny_config(stage1_steps=1, stage2_steps=1, dataset=own)
    m = run_all(run, config)
    for file in ("stage1.pt", "stage2.pt"):
        checkpoint = data.load_checkpoint(run / file)
        del checkpoint["identity"]["latent_width_high"]
        torch.save(checkpoint, run / file)
    fields = data.read_json(run / "config.json")
    del fields["latent_width_high"], fields["steps_per_class"]
    fields["texture"] = 0  # gone, and this run had none
    data.write_json(run / "config.json", fields)
    assert data.read_config(run) == config
    assert evaluate.evaluate_run(run)["cas"] == m["cas"]
    with pytest.raises(InputError, match="latent_width_high = 32, this run has 16"):
        ncvqvae.train_stage1(run, dataclasses.replace(config, latent_width_high=16))
    data.write_json(run / "config.json", fields | dict(texture=1))
    with pytest.raises(InputError, match="config.json: has a setting texture, which is gone"):
        data.read_config(run)
    made_with = m | {"config": m["config"] | {"texture": 1}}
    data.write_json(run / "metrics.json", made_with)
    with pytest.raises(InputError, match="metrics.json: has a setting texture, which is gone"):
        evaluate.evaluate_run(run, config)
    data.write_json(run / "config.json", fields | dict(annealing=3))
    with pytest.raises(InputError, match="config.json: has a setting annealing, which is gone"):
        data.read_config(run)
    checkpoint["identity"]["annealing"] = 3
    torch.save(checkpoint, run / "stage2.pt")
    data.write_json(run / "config.json", fields)
    with pytest.raises(InputError, match="stage2.pt: has a setting annealing, which is gone"):
        prior.load_stage2(run)


# ---- machines, and numbers that run away ----


def test_a_torch_without_muon_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(SystemExit, match="is too old: 2.9 or later is needed"):
        data.run_command(lambda: (tmp_path / "ran").touch())
    assert not (tmp_path / "ran").exists()
    old = tmp_path / "torch-2.8.1.dist-info"  # which run.sh asks for its version
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.8.1\n")
    python = tmp_path / "python"  # which gets as far as making a .venv
    python.write_text(f'#!/bin/sh\n[ "$2" = venv ] && exit 3\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "run.sh").write_text((HERE / "run.sh").read_text())
    done = subprocess.run(
        ["bash", tmp_path / "run.sh", "toy"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": str(python), "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "run.sh: torch 2.8.1, older than 2.9: installing requirements.txt into .venv\n"
    )


def test_a_mistyped_python_is_not_replaced_by_another(tmp_path):
    (tmp_path / "run.sh").write_text((HERE / "run.sh").read_text())
    python = tmp_path / ".venv" / "bin" / "python"  # it has all, and is not what was asked for
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", tmp_path / "run.sh", "toy", "--dry-run"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": "pyhton3"},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "run.sh: PYTHON=pyhton3: no such program\n"


def test_lack_of_memory_and_of_devices_is_one_line(tmp_path, monkeypatch, capsys):
    def allocate():
        torch.empty(10**15)

    for main in (allocate, lambda: np.empty(10**15)):
        with pytest.raises(
            SystemExit, match="(memory|MemoryError: ).*; make a batch or a width smaller"
        ):
            data.run_command(main)
    for bug in ("bug", "CUDA error: an illegal memory access was encountered"):  # stay visible
        with pytest.raises(RuntimeError, match=bug):
            data.run_command(lambda bug=bug: (_ for _ in ()).throw(RuntimeError(bug)))
    for error, mend in (
        (MemoryError("Unable to allocate 9 GiB"), "free memory and try again"),
        (torch.OutOfMemoryError("CUDA out of memory."), "free memory and try again"),
        (OSError(5, "Input/output error"), "see to that and try again"),
        (OSError("no zip"), "mend or remove it"),
        (ValueError("bad"), "mend or remove it"),
    ):
        with pytest.raises(InputError, match=f"^file: cannot be used .*; {mend}$"):
            with data.errors_naming("file"):
                raise error
    of_a_mac = [] if torch.backends.mps.is_available() else ["mps"]
    for device in ("meta", "foo", "cuda:99", *of_a_mac):
        monkeypatch.setenv("DEVICE", device)
        with pytest.raises(InputError, match=f"DEVICE={device}: cannot be used"):
            data.pick_device()
    monkeypatch.setattr(
        data.fcntl, "flock", lambda *a: (_ for _ in ()).throw(OSError(38, "no flock"))
    )
    with data.hold(tmp_path):  # some network file systems
        assert "no lock; start no second process on it" in capsys.readouterr().err


def test_nan_stops_with_step_and_advice(tmp_path):
    own = own_data(tmp_path)
    with pytest.raises(
        InputError,
        match=r"not finite at step \d+: .*before: step .*goes on from the last "
        r"saved step; if it stops at the same step again, try a smaller",
    ):
        ncvqvae.train_stage1(
            tmp_path / "nan",
            tiny_config(stage1_steps=30, stage1_lr=1e3, stage1_weight_decay=10, dataset=own),
        )
    # after the last, finite, loss
    with pytest.raises(InputError, match="weights not finite at step 1"):
        model = torch.nn.Linear(1, 1)
        training = linear_training(tmp_path, model, steps=1)
        for _ in training:
            training.step_done(model(torch.ones(1, 1)).sum())
        training._save()
        last_good = training.resume_path.read_bytes()
        model.weight.data.fill_(math.inf)
        with pytest.raises(InputError, match="weights not finite"):
            training._save()
        assert training.resume_path.read_bytes() == last_good
        training.finish(tmp_path / "s.pt")
    assert not (tmp_path / "nan/stage1.pt").exists() and not (tmp_path / "s.pt").exists()


def test_a_drawing_that_fails_is_a_warning_and_costs_no_number(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(evaluate, "draw_latents", fail)
    run = tmp_path / "own/naive-none/seed1"
    m = run_all(run, tiny_config(stage1_steps=1, stages=1, dataset=own_data(tmp_path)))
    assert data.read_json(run / "metrics.json")["recon"] == m["recon"]
    assert "latents.png: not drawn (no font); metrics.json has all" in capsys.readouterr().err
    assert {f.name for f in (run / "figures").iterdir()} == {"reconstructions.png", "losses.png"}
    before = (run / "figures/losses.png").stat().st_mtime_ns
    monkeypatch.undo()
    assert evaluate.evaluate_run(run) == m  # draws what is missing
    assert "not drawn" not in capsys.readouterr().err
    assert len(list((run / "figures").iterdir())) == 3
    assert (run / "figures/losses.png").stat().st_mtime_ns == before


def test_figures_of_samples_that_are_missing_show_those_of_the_file(tmp_path, monkeypatch):
    for labels in (True, False):
        drawn = []
        monkeypatch.setattr(evaluate, "draw_figures", lambda *inputs, d=drawn: d.append(inputs))
        run = tmp_path / f"own/naive-none/seed{1 + labels}"
        own = own_data(tmp_path, labels=labels)
        m = run_all(run, tiny_config(stage1_steps=1, stage2_steps=1, dataset=own))
        assert evaluate.evaluate_run(run) == m
        (*_, encoded, samples), (*_, encoded_again, read, names) = drawn
        assert names == list(evaluate.FIGURES)
        assert encoded["x_hat"].equal(encoded_again["x_hat"])
        torch.testing.assert_close(read["generated"], samples["generated"])
        if labels:
            torch.testing.assert_close(read["conditional"], samples["conditional"])
            assert read["labels"].equal(samples["labels"])
        else:
            assert read["conditional"] is read["labels"] is None
        (run / "samples.npz").unlink()
        evaluate.evaluate_run(run)
        assert drawn[2][-2] is None and drawn[2][-1] == list(evaluate.FIGURES[:3])


# ---- downloads ----


GOOD_ZIP = zip_bytes("Mallat_TRAIN.ts", "Mallat_TEST.ts")


MIRROR_FAULTS = {  # what the zip's address answers: status, body, promised length; the reason given
    "404": (404, b"no", None, "404"),
    "html": (200, b"<html>hello</html>", None, "not a zip file"),
    "empty": (202, b"", None, "answered 202, 0 bytes"),
    "half a zip": (200, GOOD_ZIP[: len(GOOD_ZIP) // 2], None, "not a zip file"),
    "cut mid-file": (200, GOOD_ZIP[:50], len(GOOD_ZIP), "324 missing|IncompleteRead"),
    "climbing": (
        200,
        zip_bytes("../Mallat_TRAIN.ts", "../Mallat_TEST.ts"),
        None,
        "no Mallat_TRAIN or _TEST",
    ),
    "one split": (200, zip_bytes("Mallat_TRAIN.ts"), None, "no Mallat_TRAIN or _TEST"),
    "html in the zip": (
        200,
        zip_bytes("Mallat_TRAIN.ts", "Mallat_TEST.ts", content=b"<html>"),
        None,
        "no @data line",
    ),
    "gaps": (
        200,
        zip_bytes(
            "Mallat_TRAIN.ts", "Mallat_TEST.ts", content=ts_bytes() + b"\n1,2,3,4,5,6,7,8,NaN:1"
        ),
        None,
        "holds NaN or inf",
    ),
    "short": (
        200,
        zip_bytes("Mallat_TRAIN.ts", "Mallat_TEST.ts", content=b"@data\n1,2,3:1\n1,3,2:2"),
        None,
        "series of 3 values; a frame of the STFT needs 8",
    ),
}


@pytest.fixture
def mirror(monkeypatch):
    """A local stand-in for both mirrors: paths -> (status, body, Content-Length)."""
    import http.server
    import threading

    answers = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body, promised = answers.get(self.path, (404, b"", None))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if promised is None else promised))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("UCR_MIRROR", f"http://127.0.0.1:{server.server_port}")
    yield answers
    server.shutdown()


def test_download_from_the_first_mirror(tmp_path, mirror, monkeypatch):
    mirror["/aeon-toolkit/Mallat.zip"] = (200, GOOD_ZIP, None)
    urlopen = data.urllib.request.urlopen

    def impatient(request, timeout):  # a host that hangs is given up
        assert timeout <= 60
        return urlopen(request, timeout=timeout)

    monkeypatch.setattr(data.urllib.request, "urlopen", impatient)
    d = data.load_dataset("Mallat", tmp_path)
    assert d.x_train.shape == (3, 9)
    assert {p.name for p in tmp_path.rglob("*")} == {"Mallat", "Mallat_TRAIN.ts", "Mallat_TEST.ts"}


def test_of_two_processes_that_download_a_set_one_is_first(tmp_path, mirror, monkeypatch):
    """A set is there with both splits or not at all, so that a third one reads no half of it."""
    mirror["/aeon-toolkit/Mallat.zip"] = (200, GOOD_ZIP, None)
    replace, read_split, seen = os.replace, data.read_split, []

    def spy(source, target):
        replace(source, target)
        seen.append({path.name for path in (tmp_path / "Mallat").iterdir()})

    def slow(path):
        if path.parent.parent != tmp_path and not (tmp_path / "Mallat").exists():
            (tmp_path / "Mallat").mkdir()
            for split in ("TRAIN", "TEST"):  # the other process is done
                (tmp_path / f"Mallat/Mallat_{split}.ts").write_bytes(ts_bytes())
        return read_split(path)

    monkeypatch.setattr(data.os, "replace", spy)
    data.load_dataset("Mallat", tmp_path)
    assert seen == [{"Mallat_TRAIN.ts", "Mallat_TEST.ts"}]
    for path in (tmp_path / "Mallat").iterdir():
        path.unlink()
    (tmp_path / "Mallat").rmdir()
    exists = data.Path.exists
    monkeypatch.setattr(data, "read_split", slow)
    monkeypatch.setattr(  # it came between the look and the move
        data.Path, "exists", lambda path: path != tmp_path / "Mallat" and exists(path)
    )
    monkeypatch.setattr(data.os, "replace", replace)
    assert data.load_dataset("Mallat", tmp_path).x_train.shape == (3, 9)
    assert {path.name for path in tmp_path.iterdir()} == {"Mallat"}


@pytest.mark.parametrize("fault", MIRROR_FAULTS)
def test_a_bad_mirror_leaves_nothing_and_the_second_one_serves(tmp_path, mirror, fault):
    root = tmp_path / "inner"
    *mirror["/aeon-toolkit/Mallat.zip"], reason = MIRROR_FAULTS[fault]
    advice = r"no mirror has it .*put Mallat_TRAIN.tsv and Mallat_TEST.tsv into"
    with pytest.raises(InputError, match=advice) as error:
        data.load_dataset("Mallat", root)
    assert re.search(reason, str(error.value)) and "\n" not in str(error.value)
    assert not [p for p in tmp_path.rglob("*") if p != root]
    for split in ("TRAIN", "TEST"):
        mirror[f"/records/11197731/files/Mallat_{split}.ts"] = (200, ts_bytes(), None)
    assert data.load_dataset("Mallat", root).x_test.shape == (3, 9)


def test_without_a_network_the_message_says_where_files_go(tmp_path, monkeypatch):
    monkeypatch.setenv("UCR_MIRROR", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(InputError, match="password: someone"):
        data.load_dataset("Mallat", tmp_path)
    assert not list(tmp_path.iterdir())
