"""Energy by NVIDIA's driver: a stand-in for its library, and what the metrics of a stage say."""

from __future__ import annotations

import contextlib
import subprocess

import pytest
from recipe_case import recipe

from paramgolf import stage_runtime
from paramgolf.energy import EnergyMeter
from paramgolf.files import read_json, write_json
from paramgolf.stage_runtime import metered

# GPU n has used 1000 (n + 1) J and uses n + 1 more each time that it is asked; GPU 7 is too old
DRIVER = r"""
#include <string.h>
static unsigned long long used[8];
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **out) { *out = &used[i]; return i > 7; }
int nvmlDeviceGetHandleByUUID(const char *name, void **out) {
    *out = &used[1]; return strcmp(name, "GPU-one") != 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    unsigned long long index = (unsigned long long *)device - used;
    *millijoules = 1000000 * (index + 1) + 1000 * (index + 1) * used[index]++;
    return index == 7 ? 3 : 0;
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(DRIVER)
    library = folder / "libnvml.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "nvml.c"], check=True)
    return str(library)


def test_the_counters_of_gpus_are_summed(driver):
    meter = EnergyMeter(driver)
    before = meter.joules(["0", "GPU-one"])
    assert before == 3000.0
    assert meter.joules(["0", "GPU-one"]) - before == 3.0
    assert meter.joules(["0", "7"]) is None  # not half of it
    assert meter.joules([]) is None


def test_without_a_driver_nothing_is_known():
    assert EnergyMeter("libno-such-driver.so").joules(["0"]) is None


@pytest.mark.parametrize("end", [None, 0])
def test_metrics_tell_the_energy_of_the_stages_gpus(end, driver, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage_runtime, "EnergyMeter", lambda: EnergyMeter(driver))
    monkeypatch.setattr(stage_runtime, "visible_gpus", lambda: ["2", "3"])
    run("train", end)
    assert read_json("artifacts/metrics/train.json") == {"val_bpb": 1.0, "energy_wh": 7 / 3600}


def test_a_cpu_has_none_and_a_stage_that_failed_no_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("train", None)
    assert read_json("artifacts/metrics/train.json") == {"val_bpb": 1.0, "energy_wh": None}
    run("calibrate", 2)
    assert read_json("artifacts/metrics/calibrate.json") == {"val_bpb": 1.0}


def run(stage: str, code: int | None) -> None:
    """Do a stage's work, which ends by SystemExit(code) if its processes were launched."""
    with contextlib.suppress(SystemExit), metered(stage, recipe("base").runtime):
        write_json(f"artifacts/metrics/{stage}.json", {"val_bpb": 1.0})
        if code is not None:
            raise SystemExit(code)
