"""A second place for results and logs: what is written there, when, and what a fault costs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from process_case import wait_for

from paramgolf.errors import ParamGolfError
from paramgolf.mirror import Mirror, file_name, mirrored, run_name
from paramgolf.params import read_yaml

ROOT = Path(__file__).parents[1]
STAGE = """
import pathlib
from paramgolf.files import write_bytes
from paramgolf.mirror import mirrored
with mirrored("train"):
    with open("artifacts/train/log.jsonl", "a") as log:
        log.write("step 1\\n")
    write_bytes(".resume/train-key/state.pt", bytes(100_000))
    print("written", flush=True)
    input()
"""


def mirror_at(place: object, **options: float) -> Mirror:
    return Mirror(str(place), "--mirror", **options)


def test_a_file_is_copied_whenever_it_has_changed(tmp_path):
    mirror = mirror_at(tmp_path / "there")
    log = tmp_path / "train.log"
    mirror.add("base/train.log", log)
    mirror.copy()  # not written yet
    log.write_text("one\n")
    mirror.copy()
    assert (tmp_path / "there/base/train.log").read_text() == "one\n"
    (tmp_path / "there/base/train.log").write_text("as it was")
    mirror.copy()
    assert (tmp_path / "there/base/train.log").read_text() == "as it was"
    log.write_text("one\ntwo\n")
    mirror.copy()
    assert (tmp_path / "there/base/train.log").read_text() == "one\ntwo\n"


def test_folders_are_followed_but_for_files_that_are_being_written(tmp_path):
    for name in ("a/one", "a/b/two", "a/b/.two.tmp", "c/three"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    mirror = mirror_at(tmp_path / "there")
    mirror.follow(tmp_path, "a/**/*")
    mirror.copy()
    copied = [p for p in (tmp_path / "there").rglob("*") if p.is_file()]
    assert sorted(p.relative_to(tmp_path / "there").as_posix() for p in copied) == [
        "a/b/two",
        "a/one",
    ]


def test_a_bucket_holds_what_was_written_before_the_machine_is_lost(bucket, tmp_path):
    mirror = mirror_at(bucket, seconds=0.05)
    mirror.follow(tmp_path, "artifacts/**/*")
    log, checkpoint = tmp_path / "artifacts/log.jsonl", tmp_path / "artifacts/state.pt"
    log.parent.mkdir()
    large = bytes(range(256)) * 2**15  # 8 MiB
    there = fsspec.filesystem("s3", skip_instance_cache=True)
    never = threading.Event()  # the machine is lost: there is no last copy
    copying = threading.Thread(target=mirror.work, args=(never,))
    copying.start()
    checkpoint.write_bytes(large)
    for step in range(3):
        with log.open("a") as file:
            file.write(f"step {step}\n")
        wait_for(lambda: read(there, f"{bucket}/artifacts/log.jsonl") == log.read_bytes())
    wait_for(lambda: read(there, f"{bucket}/artifacts/state.pt") == large)
    never.set()
    copying.join()


def test_a_bucket_that_does_not_exist_is_told_and_not_made(bucket, tmp_path, capsys):
    (tmp_path / "log").write_text("text")
    mirror = mirror_at(bucket.replace("golf", "gulf"))
    mirror.add("log", tmp_path / "log")
    mirror.copy()
    mirror.copy()
    said = capsys.readouterr().err
    assert said.count("mirror: no copy at") == said.count("bucket does not exist") == 1
    there = fsspec.filesystem("s3", skip_instance_cache=True)
    assert not [name for name in there.ls("") if "gulf" in name]


class Containers(MemoryFileSystem):
    """As Azure's file system: to make folders makes a container; files are put into none else."""

    protocol = "abfs"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("abfs:/"))

    def put_file(self, lpath, rpath, **options):
        container = self._strip_protocol(rpath).split("/")[1]
        if not self.isdir(container):
            raise FileNotFoundError(f"no container {container}")
        super().put_file(lpath, rpath, **options)


def test_a_container_that_does_not_exist_is_told_and_not_made(tmp_path, capsys):
    fsspec.register_implementation("abfs", Containers, clobber=True)
    there = fsspec.filesystem("abfs")
    there.mkdir("/golf")
    (tmp_path / "log").write_text("text")
    for container in ("golf", "gulf"):
        mirror = mirror_at(f"abfs://{container}/runs")
        mirror.add("log", tmp_path / "log")
        mirror.copy()
    assert capsys.readouterr().err.count("no container gulf") == 1
    assert there.find("/") == ["/golf/runs/log"]
    assert not there.exists("/gulf")


def read(system: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    try:
        return system.cat_file(path)
    except FileNotFoundError:
        return None


def test_a_copy_that_breaks_off_leaves_the_one_before_it(tmp_path, monkeypatch, capsys):
    checkpoint, there = tmp_path / "state.pt", tmp_path / "there/state.pt"
    mirror = mirror_at(tmp_path / "there")
    mirror.add("state.pt", checkpoint)
    checkpoint.write_text("first, whole")
    mirror.copy()

    def broken(self, source, target, **_):
        Path(target).write_text(Path(source).read_text()[:5])
        raise ConnectionResetError("the line went dead")

    checkpoint.write_text("second, whole")
    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "put_file", broken)
        mirror.copy()
    assert there.read_text() == "first, whole"
    mirror.copy()
    assert there.read_text() == "second, whole"
    assert capsys.readouterr().err.count("mirror: no copy at") == 1


def test_a_place_that_cannot_be_written_costs_one_message_and_is_tried_again(tmp_path, capsys):
    (tmp_path / "there").write_text("no folder")
    (tmp_path / "log").write_text("text")
    mirror = mirror_at(tmp_path / "there")
    mirror.add("log", tmp_path / "log")
    mirror.copy()
    mirror.copy()
    assert capsys.readouterr().err.count("mirror: no copy at") == 1
    (tmp_path / "there").unlink()
    mirror.copy()
    assert (tmp_path / "there/log").read_text() == "text"


def test_a_place_that_fails_again_after_a_copy_is_told_again(tmp_path, monkeypatch, capsys):
    log, there = tmp_path / "log", tmp_path / "there"
    mirror = mirror_at(there)
    mirror.add("log", log)
    for text in ("one", "two"):
        log.write_text(text)
        with monkeypatch.context() as patched:
            patched.setattr(LocalFileSystem, "put_file", lambda *_, **__: 1 / 0)
            mirror.copy()
            mirror.copy()
        assert capsys.readouterr().err.count("mirror: no copy at") == 1
        mirror.copy()
        assert (there / "log").read_text() == text


def test_one_file_that_always_fails_is_told_once_though_others_are_copied(
    tmp_path, monkeypatch, capsys
):
    mirror = mirror_at(tmp_path / "there")
    for name in ("large", "log"):
        mirror.add(name, tmp_path / name)
        (tmp_path / name).write_text(name)
    put_file = LocalFileSystem.put_file

    def full(self, source, target, **options):
        if "large" in target:
            raise OSError("no space left")
        return put_file(self, source, target, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", full)
    for step in range(3):
        (tmp_path / "log").write_text(f"step {step}")
        mirror.copy()
        assert (tmp_path / "there/log").read_text() == f"step {step}"
    assert capsys.readouterr().err.count("mirror: no copy at") == 1


def test_a_place_whose_folder_is_missing_and_cannot_be_made_is_told(tmp_path, capsys):
    (tmp_path / "log").write_text("text")
    mirror = mirror_at("/proc/none/there")  # its error is that of a file that is not there
    mirror.add("log", tmp_path / "log")
    mirror.add("other", tmp_path / "not written yet")
    mirror.copy()
    assert mirror.silent
    assert capsys.readouterr().err.count("mirror: no copy at") == 1


def test_a_file_that_vanishes_while_it_is_copied_is_excused(tmp_path, monkeypatch, capsys):
    log = tmp_path / "log"
    log.write_text("text")
    mirror = mirror_at(tmp_path / "there")
    mirror.add("log", log)
    put_file = LocalFileSystem.put_file

    def swept(self, source, target, **options):
        log.unlink()
        return put_file(self, source, target, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", swept)
    mirror.copy()
    assert not capsys.readouterr().err


def test_a_kind_of_place_that_nobody_knows_is_refused():
    with pytest.raises(ParamGolfError, match="--mirror cannot be used"):
        mirror_at("nowhere://x")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters that name a mirror, `there`."""
    params = read_yaml(ROOT / "params.yaml")
    params["runtime"]["mirror"] = str(tmp_path / "there")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "artifacts/train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_a_killed_stage_is_read_back_from_the_mirror(project):
    command = [sys.executable, "-c", STAGE]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as stage:
        assert stage.stdout.readline() == "written\n"
        stage.send_signal(signal.SIGKILL)
        stage.wait()
        assert stage.stderr.read() == ""  # until the copier, which has it too, has ended
    there = project / "there" / run_name(read_yaml("params.yaml"))
    for name in ("artifacts/train/log.jsonl", ".resume/train-key/state.pt", "params.yaml"):
        assert (there / name).read_bytes() == (project / name).read_bytes()


def test_a_place_that_does_not_answer_ends_no_stage_and_is_told_once(project, capfd):
    (project / "there").write_text("no folder")
    with mirrored("train"):
        for name in ("log.jsonl", "model.safetensors"):
            (project / "artifacts/train" / name).write_text("text")
    said = capfd.readouterr().err
    assert said.count("mirror: no copy at") == said.count("the last files are not all at") == 1


def test_a_process_of_torchrun_leaves_copying_to_its_launcher(project, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    with mirrored("train"):
        (project / "artifacts/train/log.jsonl").write_text("step 1\n")
    assert not (project / "there").exists()


def test_runs_with_other_parameters_have_other_folders(project):
    params = read_yaml("params.yaml")
    name = run_name(params)
    params["runtime"]["mirror"] = "elsewhere"
    assert run_name(params) == name
    params["train"]["seed"] += 1
    assert run_name(params) != name


def test_a_label_becomes_the_name_of_a_folder():
    assert file_name("a/b, (two), seed 3") == "a-b-two-seed-3"
