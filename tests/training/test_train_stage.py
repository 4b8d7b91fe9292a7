"""`scripts/train_stage.sh` and the Slurm script: which launcher they pick, and what they refuse."""

import os
import signal
import subprocess
import time

import pytest

STAGE = "scripts/train_stage.sh"
FAKE = """#!/usr/bin/env bash
echo "$(basename "$0") $*"
"""


def script(path, text):
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def launched(tmp_path, pytestconfig):
    """A function that runs the script with launchers that only print how they are called."""
    for name in ("python", "torchrun", "diffusionvl"):
        script(tmp_path / name, FAKE)

    def launched(*argv, **environment):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment}
        return subprocess.run(
            ["bash", STAGE, *argv], env=environment, cwd=pytestconfig.rootpath, capture_output=True, text=True
        )

    return launched


RECIPE = "configs/recipes/quickstart.yaml"
COMMAND = f"-m diffusionvl.train {RECIPE} --stage translate --max_steps 3"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NPROC": "1"}, f"python {COMMAND}"),
        ({"NPROC": "8"}, f"torchrun --standalone --nproc_per_node 8 {COMMAND}"),
        (
            {"NPROC": "8", "NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "first"},
            "torchrun --nnodes 4 --node_rank 2 --master_addr first --master_port 29500 --nproc_per_node 8 " + COMMAND,
        ),
        (
            {"NPROC": "1", "NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "first", "MASTER_PORT": "7"},
            "torchrun --nnodes 2 --node_rank 0 --master_addr first --master_port 7 --nproc_per_node 1 " + COMMAND,
        ),
    ],
)
def test_the_launcher_is_picked(launched, environment, expected):
    found = launched("translate", RECIPE, "--max_steps", "3", **environment)
    assert (found.returncode, found.stdout, found.stderr) == (0, expected + "\n", "")


def test_a_dry_run_is_one_process_that_plans_for_all(launched):
    found = launched("ar", RECIPE, "--dry_run", NPROC="8", NNODES="4")
    assert found.stdout == f"python -m diffusionvl.train {RECIPE} --stage ar --dry_run --dry_run_processes 32\n"


@pytest.mark.parametrize(
    ("argv", "environment", "part"),
    [
        ([], {}, "'' is not a stage; give ar, align or translate"),
        (["finetune", RECIPE], {}, "'finetune' is not a stage"),
        (["ar"], {}, "there is no recipe ''"),
        (["ar", "none.yaml"], {}, "there is no recipe 'none.yaml'"),
        (["ar", RECIPE], {"NPROC": "all"}, "NPROC must be a number of processes, got 'all'"),
        (["ar", RECIPE], {"NPROC": "1", "NNODES": "0"}, "NNODES must be a number of machines, got '0'"),
        (["ar", RECIPE], {"NPROC": "1", "NNODES": "2"}, "MASTER_ADDR is not set"),
        (["ar", RECIPE], {"NPROC": "1", "NNODES": "2", "MASTER_ADDR": "first"}, "NODE_RANK is ''; give 0 to 1"),
    ],
)
def test_a_mistake_is_one_line(launched, argv, environment, part):
    found = launched(*argv, **environment)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("train_stage.sh: error: ")
    assert found.stderr.count("\n") == 1
    assert part in found.stderr


@pytest.mark.slow
def test_slurm_starts_all_machines_and_queues_again_when_it_is_told_to_stop(recipe, tmp_path, pytestconfig):
    """Two machines that are both this one; then the time limit's signal, and the job's second start."""
    script(
        tmp_path / "scontrol",
        f'#!/usr/bin/env bash\n[ $1 = show ] && echo 127.0.0.1 && echo second || echo "$*" >> {tmp_path}/requeued\n',
    )
    script(
        tmp_path / "srun",
        "#!/usr/bin/env bash\ntrap 'kill -TERM $a $b; wait $a; wait $b; exit 1' TERM\n"
        'SLURM_NODEID=0 "$@" & a=$!\nSLURM_NODEID=1 "$@" & b=$!\nwait $a && wait $b\n',
    )
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "nodes",
        "SLURM_JOB_ID": "17",
        "NPROC": "1",
        "MASTER_PORT": "29517",
    }
    out = tmp_path / "out"
    command = ["bash", "scripts/slurm/train.sbatch", "translate", recipe, "--output_dir", str(out)]
    options = {"env": environment, "cwd": pytestconfig.rootpath, "text": True}
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen([*command, "--max_steps", "100000"], stdout=log, stderr=log, **options)
        while not (out / "checkpoint-2").exists():
            assert job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        job.send_signal(signal.SIGTERM)
        assert job.wait() != 0
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    reached = max(int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*"))
    again = subprocess.run([*command, "--max_steps", str(reached + 2)], capture_output=True, **options)
    assert again.returncode == 0, again.stderr
    assert (out / f"checkpoint-{reached + 2}").is_dir()
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
