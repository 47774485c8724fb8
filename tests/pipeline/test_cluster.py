"""Training on several processes and hosts, as docs/cluster.md says, on one machine's CPU."""

from __future__ import annotations

import shutil
import subprocess
import uuid

import pytest

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]


def namespaces() -> str | None:
    """Return why no network namespace can be made here, or None."""
    if shutil.which("ip") is None:
        return "needs ip: apt-get install iproute2"
    name = f"golf-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"needs a network namespace: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


def listed() -> str:
    """Return the network namespaces that there are."""
    command = ["ip", "netns", "list"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_two_hosts_train_what_one_trains(project):
    if reason := namespaces():
        pytest.skip(reason)
    before = listed()
    output = project.run("scripts/two_hosts.sh", "3")
    assert "two hosts: 2 processes, 3 steps" in output
    assert "one host:  1 process, 3 steps" in output
    assert listed() == before


@pytest.mark.parametrize(
    ("steps", "message"),
    [("none", "STEPS must be a whole number"), ("2", "there is no data/tokens")],
)
def test_the_script_says_what_it_lacks(project, tmp_path, steps, message):
    script = tmp_path / "scripts/two_hosts.sh"
    script.parent.mkdir()
    shutil.copy(project.folder / "scripts/two_hosts.sh", script)
    done = subprocess.run([script, steps], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_training_by_torchrun_becomes_the_stages_result(sibling):
    """`dvc commit` takes what was trained outside; the next stage reads it."""
    sibling.set({"train": {"seed": 5, "steps": 4}})
    torchrun = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    sibling.run(*torchrun, "stages/train.py")
    assert sibling.metrics("train")["world_size"] == 2
    sibling.run("dvc", "commit", "-f", "train")
    assert sibling.would_run()[0] == "calibrate"
