"""`scripts/gpu_check.sh` on a machine without a GPU."""

import json
import subprocess

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the checks would run")
def test_without_a_gpu_the_tests_are_collected_and_the_rest_is_left_out(tmp_path, pytestconfig):
    subprocess.run(["bash", "scripts/gpu_check.sh", str(tmp_path)], cwd=pytestconfig.rootpath, check=True)
    (path,) = tmp_path.glob("*.json")
    outcomes = [check["outcome"] for check in json.loads(path.read_text(encoding="utf-8"))["checks"]]
    assert outcomes == ["collected and skipped: no GPU", "left out: no GPU", "left out: no GPU"]
    assert "no GPU" in path.with_suffix(".md").read_text(encoding="utf-8")
