"""The doctor: each finding from facts made up, and the whole examination of this machine."""

from __future__ import annotations

import dataclasses
import fcntl
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from paramgolf.doctor import plans, project, reach, software, storage
from paramgolf.doctor.check import Check
from paramgolf.estimate.devices import DEVICES, GIB
from paramgolf.recipes import compose

ROOT = Path(__file__).parents[1]
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 79 * GIB, "capability": [9, 0]}
FACTS = {"version": "2.11.0", "cuda": "13.0", "gpus": [H100], "nccl": "2.28", "triton": "3.6"}


def by_name(findings: list[Check]) -> dict[str, Check]:
    return {finding.name: finding for finding in findings}


def check_torch(driver: tuple[str, ...] = (), **changes: object) -> dict[str, Check]:
    facts = {**FACTS, "flash_attention": None, **changes}
    return by_name(list(software.check_torch(facts, driver)))


# software


def test_an_old_python_is_a_fault_and_another_on_the_path_a_warning():
    here = str(Path(sys.executable).parent / "python")
    assert software.check_python((3, 12, 1), here).state == "ok"
    assert software.check_python((3, 10, 9), here).state == "fault"
    other = software.check_python((3, 12, 1), "/usr/bin/python")
    assert other.state == "warning"
    assert "/activate" in other.remedy


def test_another_name_of_the_same_environment_is_no_warning(tmp_path):
    named = tmp_path / "venv"
    named.symlink_to(Path(sys.executable).parents[1])
    assert software.check_python((3, 12, 1), str(named / "bin/python")).state == "ok"


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("numpy>=999", "numpy>=999 is asked for"),
        ("no-such-package", "no-such-package is missing"),
        ("no-such-package; extra == 'gpu'", None),
        ("numpy", None),
    ],
)
def test_packages_must_be_there_in_the_version_asked_for(requirement, message):
    finding = software.check_packages([requirement, "pyyaml>=6"])
    assert finding.state == ("fault" if message else "ok")
    assert message is None or message in finding.text


def test_paramgolf_need_not_be_installed_to_be_examined(monkeypatch):
    def none(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(software.metadata, "requires", none)
    finding = software.check_packages(software.required_packages())
    assert finding.state == "fault"
    assert "not installed" in finding.text


def test_a_good_gpu_machine_is_all_ok():
    findings = check_torch(gpus=[H100, H100])
    assert {finding.state for finding in findings.values()} == {"ok"}
    assert findings["GPU"].text.count("H100") == 2
    assert findings["NCCL"].text == "2.28"


@pytest.mark.parametrize(
    ("changes", "name", "state", "message"),
    [
        ({"gpus": []}, "CUDA", "ok", "CPU"),
        ({"gpus": [], "driver": ("H100",)}, "CUDA", "fault", "built for CUDA 13.0"),
        ({"gpus": [], "cuda": None, "driver": ("H100",)}, "CUDA", "fault", "without CUDA"),
        ({"gpus": [{**H100, "capability": [7, 0]}]}, "GPU", "fault", "no bfloat16"),
        ({"flash_attention": "No module named"}, "flash_attn_3", "warning", "No module"),
        ({"gpus": [{**H100, "capability": [8, 0]}]}, "flash_attn_3", "ok", "PyTorch's"),
        ({"triton": None}, "Triton", "warning", "cannot be compiled"),
        ({"error": "No module named 'torch'"}, "torch", "fault", "No module named 'torch'"),
    ],
)
def test_what_torch_reports_is_ok_a_warning_or_a_fault(changes, name, state, message):
    finding = check_torch(**changes)[name]
    assert finding.state == state
    assert message in finding.text
    assert bool(finding.remedy) == (state != "ok")


def test_torch_is_probed_in_a_process_of_its_own():
    facts = software.probe_torch()
    assert facts["version"].split(".")[0].isdigit()
    assert facts.keys() == {*FACTS, "flash_attention"}


def test_a_torch_that_cannot_be_imported_is_a_fault(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "libcudart.so.13" in software.probe_torch()["error"]


# storage


def test_little_memory_and_disk():
    assert storage.check_memory(GIB).state == "warning"
    assert storage.check_memory(16 * GIB).state == "ok"
    states = [storage.check_disk(free, Path("x")).state for free in (0, 5 * GIB, 50 * GIB)]
    assert states == ["fault", "warning", "ok"]


@pytest.mark.parametrize(
    ("kinds", "state", "text"),
    [
        ("hardlink,copy", "ok", "hardlink"),
        ("symlink,copy", "ok", "symlink"),
        ("copy", "warning", "twice"),
        ("unknown", "fault", "none of unknown works"),
    ],
)
def test_links_are_tried_in_the_order_of_the_configuration(kinds, state, text, tmp_path):
    before = sorted(os.listdir(tmp_path))
    finding = storage.check_links({"cache.type": kinds}, tmp_path)
    assert finding.state == state
    assert text in finding.text
    assert sorted(os.listdir(tmp_path)) == before


def test_a_hardlink_needs_one_disk(monkeypatch, tmp_path):
    def refuse(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(fcntl, "ioctl", refuse)  # by which blocks are shared
    finding = storage.check_links({"cache.type": "reflink,hardlink,copy"}, tmp_path)
    assert "one disk" in finding.remedy


@pytest.mark.parametrize("place", ["/proc/none/cache", "file/cache", "file"])
def test_a_cache_folder_that_cannot_be_made_is_a_fault(place, tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/file").write_text("no folder")
    finding = storage.check_links({"cache.dir": place}, tmp_path)
    assert (finding.state, finding.remedy) == ("fault", "dvc cache dir FOLDER")
    assert finding.text.endswith(f"{place} cannot be made or written to")


def test_the_cache_folder_may_be_elsewhere(tmp_path):
    assert storage.cache_folder({}, tmp_path) == tmp_path / ".dvc/cache"
    assert storage.cache_folder({"cache.dir": "/data/cache"}, tmp_path) == Path("/data/cache")
    assert storage.free_bytes(tmp_path / "not/yet") == shutil.disk_usage(tmp_path).free


# project and network


def test_parameters_at_fault_are_a_fault(tmp_path):
    path = tmp_path / "params.yaml"
    assert project.check_params(tmp_path).text == f"there is no file {path}"  # the remedy is apart
    text = json.dumps(compose("sample", ROOT / "recipes"))  # JSON is YAML
    path.write_text(text)
    assert project.check_params(tmp_path).state == "ok"
    path.write_text(text.replace('"seed"', '"sed"'))
    assert "`train.sed` is not a parameter" in project.check_params(tmp_path).text


def test_git_needs_a_commit_and_an_identity(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "no repository" in project.check_git(tmp_path)[0].text
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=b"]
    commit = ["git", *identity, "commit", "-q", "--allow-empty", "-m", "start"]
    subprocess.run(commit, cwd=tmp_path, check=True)
    assert "user.name and user.email not set" in project.check_git(tmp_path)[0].text
    for key in ("user.name", "user.email"):
        subprocess.run(["git", "config", key, "x"], cwd=tmp_path, check=True)
    assert project.check_git(tmp_path)[0].state == "ok"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert project.check_git(tmp_path)[0].state == "fault"


@pytest.mark.parametrize(
    ("url", "answers", "state", "text"),
    [
        ("ssh://me:secret@host/data", True, "ok", "ssh://host answers"),
        ("ssh://host/data", False, "warning", "does not answer"),
        ("s3://bucket/data", False, "ok", "not tried"),
        ("/no/such/folder", False, "warning", "is not there"),
        ("cache", False, "ok", "is there"),
    ],
)
def test_remotes(url, answers, state, text, tmp_path, monkeypatch):
    monkeypatch.setattr(project, "find_spec", lambda name: name)
    (tmp_path / ".dvc/cache").mkdir(parents=True)
    config = {"core.remote": "r", "remote.r.url": url}
    finding = project.check_remote(config, tmp_path, lambda _: answers)
    assert finding.state == state
    assert text in finding.text
    assert "secret" not in finding.text


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("ssh://host/data", "dvc-ssh"),
        ("webdavs://host/data", "dvc-webdav"),
        ("s3://bucket", "dvc-s3"),
        ("https://host/data", None),
        ("/no/such/folder", None),
    ],
)
def test_a_remote_whose_package_is_missing(url, package, tmp_path, monkeypatch):
    monkeypatch.setattr(project, "find_spec", lambda name: None)
    config = {"core.remote": "r", "remote.r.url": url}
    finding = project.check_remote(config, tmp_path, lambda _: True)
    assert (f"{package} is not installed" in finding.text) == (package is not None)
    assert package is None or f"pip install {package}" in finding.remedy


def test_no_remote_and_no_dvc():
    assert "none" in project.check_remote({}, ROOT, lambda _: False).text
    assert project.check_dvc(None).state == "fault"


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a server on 127.0.0.1 that knows no page."""
    service = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    yield service.server_port
    service.shutdown()
    service.server_close()
    thread.join()


def test_a_server_that_refuses_answers(server, free_port, monkeypatch):
    monkeypatch.setattr(reach, "SECONDS", 20.0)  # a loaded machine starts Python slowly
    for scheme in ("http", "ssh", "webdav"):
        assert reach.reachable(f"{scheme}://127.0.0.1:{server}/x")
        assert not reach.reachable(f"{scheme}://127.0.0.1:{free_port}/x")


def test_a_silent_server_is_given_up(monkeypatch):
    def silent(command: list[str], **options: float) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", silent)
    assert not reach.reachable("http://127.0.0.1/")
    finding = project.check_hub("https://hub.example/", reach.reachable)
    assert (finding.state, finding.text[:20]) == ("warning", "hub.example does not")


# recipes


def gpu(name: str) -> software.Gpu:
    return software.Gpu(name=name, memory_bytes=79 * GIB, capability=(9, 0))


def test_recipes_by_machine():
    folder = ROOT / "recipes"
    on_cpu = by_name(list(plans.check_recipes([], 16 * GIB, folder)))
    assert on_cpu["recipe sample"].state == "ok"
    assert "recipe pr1493" not in on_cpu
    assert on_cpu["recipes"].state == "warning"
    assert "pr1493" in on_cpu["recipes"].text
    contest = by_name(list(plans.check_recipes([gpu("NVIDIA H100")] * 8, 16 * GIB, folder)))
    assert contest["recipe pr1493"].state == "ok"
    assert "steps in about 10 min" in contest["recipe pr1493"].text
    one = by_name(list(plans.check_recipes([gpu("NVIDIA H100")], 16 * GIB, folder)))
    assert "12.5% of the tokens" in one["recipe pr1493"].text
    unknown = by_name(list(plans.check_recipes([gpu("NVIDIA L4")], 16 * GIB, folder)))
    assert "NVIDIA L4 is not in" in unknown["recipe sample"].text


def test_a_recipe_that_does_not_fit_in_memory(sample):
    machine = plans.Machine(device=DEVICES["H100"], count=1)
    finding = plans.check_recipe("recipe sample", sample, machine, GIB // 100)
    assert finding.state == "warning"
    assert "needs" in finding.text


def test_fp8_where_it_is_slower_is_a_warning(sample):
    train = dataclasses.replace(sample.train, precision="fp8_mlp")
    short = dataclasses.replace(sample, train=train)
    for device, state in (("H100", "ok"), ("cpu", "warning")):
        machine = plans.Machine(device=DEVICES[device], count=1)
        assert plans.check_recipe("recipe sample", short, machine, 64 * GIB).state == state


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "90 s"), (600, "10 min"), (9000, "2 h"), (432000, "5 days")]
)
def test_a_duration_is_shown_in_its_largest_unit(seconds, text):
    assert plans.duration(seconds) == text


# the command


def test_an_empty_folder_is_a_fault_in_json_and_exit_code(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    found = json.loads(command("doctor", "--json", code=1))
    assert found["ok"] is False
    states = {line["name"]: line["state"] for line in found["findings"]}
    assert states["params.yaml"] == "fault"
    assert states["torch"] == "ok"


def test_the_table_shows_a_remedy_below_its_check(monkeypatch, command):
    findings = [Check("a", "ok", "good"), Check("b", "warning", "[x]", "mend [y]")]
    monkeypatch.setattr("paramgolf.commands.doctor.survey", lambda _: findings)
    lines = [line.split() for line in command("doctor").splitlines()]
    assert lines == [["ok", "a", "good"], ["warning", "b", "[x]"], ["->", "mend", "[y]"]]
