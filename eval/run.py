"""`python -m eval.run SUITE MODEL`: runs a suite by lmms-eval, a process group for each task.

A task that is finished is not run again. lmms-eval ends with exit code 0 whatever happens, so each run is judged by
what it wrote; a failure is reported with its reason, and the exit code is 1.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffusionvl.commands.command_line import Parser
from diffusionvl.modeling.errors import UserError
from eval.bertscore import add_bertscore
from eval.results import RunRecord, collect, read_run, task_metrics, write_run
from eval.suites import EVAL, LOCAL, Run, Suite, read_suite, suite_names

CUTTING = re.compile(r"""[,"'\[\]{}]""")
REASON = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:[\w.]+)?(?:Error|Exception|Interrupt)\b.*)")


def build_parser() -> Parser:
    """Builds the parser of the command line."""
    parser = Parser(prog="eval/run.sh", description="Run a suite of benchmarks by lmms-eval.")
    parser.add_argument("suite", help=f"one of {', '.join(suite_names())}")
    parser.add_argument("model", help="checkpoint, block diffusion or AR: a folder or a hub id")
    parser.add_argument("--out", type=Path, default=Path("outputs/eval"), help="folder of the results (outputs/eval)")
    parser.add_argument("--name", help="name of the model in tables; the last part of its path if left out")
    parser.add_argument("--nproc", type=int, help="processes; one for each GPU, or one, if left out")
    parser.add_argument("--limit", type=int, help="first N questions of each task; not a result to be published")
    parser.add_argument("--batch-size", type=int, help="questions that are answered together; the suite's if left out")
    parser.add_argument("--device", help="such as cpu; a GPU for each process if left out")
    parser.add_argument("--model-args", default="", metavar="K=V,...", help="more options of the plugin, such as dtype")
    parser.add_argument("--gen-kwargs", default="", metavar="K=V,...", help="decoding settings over the suite's")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="of the suite, these alone")
    parser.add_argument("--against", default="", help="published model that compare.py sets beside this one")
    parser.add_argument("--overwrite", action="store_true", help="run again what was run with other settings")
    return parser


@dataclass(frozen=True)
class Job:
    """One run and where it goes.

    Attributes:
        run: Task and settings.
        folder: Folder of the results.
        asked: What decides the answers.
        kind: `ar` or `block_diffusion`.
        block_size: Block size of the checkpoint, if it has one.
    """

    run: Run
    folder: Path
    asked: dict[str, Any]
    kind: str
    block_size: int | None


def main(argv: list[str] | None = None) -> int:
    """Runs a suite.

    Returns:
        0; 1 if a run failed; 2 for an input that cannot be used.
    """
    return build_parser().run(_run, argv)


def _run(arguments: argparse.Namespace) -> int:
    """Checks everything, then runs."""
    suite = read_suite(arguments.suite)
    check_values(arguments, suite)
    jobs = plan(arguments, suite)
    if suite.data == LOCAL:
        prepare_local_data()
    return run_all(arguments, suite, jobs)


def check_values(arguments: argparse.Namespace, suite: Suite) -> None:
    """Checks flags before anything slow, and fills in what was left out.

    Raises:
        UserError: A flag has a value that cannot be used, or lmms-eval is missing.
    """
    if find_spec("lmms_eval") is None:
        raise UserError("lmms-eval is missing; bash scripts/setup.sh dev,eval installs it")
    for name in ("nproc", "limit", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    known = [task.name for task in suite.tasks]
    for task in arguments.tasks or ():
        if task not in known:
            raise UserError(f"--tasks {task}: suite {suite.name} has {', '.join(known)}")
    if not arguments.nproc:
        from torch.cuda import device_count  # late: torch takes seconds to import

        arguments.nproc = 1 if arguments.device else max(device_count(), 1)
    arguments.batch_size = arguments.batch_size or suite.batch_size
    arguments.limit = arguments.limit or suite.limit
    arguments.name = arguments.name or Path(arguments.model).resolve().name
    for place in (Path(arguments.model).resolve(), (arguments.out / arguments.name).resolve()):
        if found := CUTTING.search(str(place)):
            raise UserError(f"{place} holds {found[0]!r}, at which lmms-eval cuts its options; give another place")


def parse_pairs(text: str, flag: str) -> dict[str, Any]:
    """Reads `a=1,b=2` as a mapping; numbers and truth values are read as lmms-eval reads them.

    Raises:
        UserError: A part has no `=`.
    """
    pairs = [part.partition("=") for part in text.split(",") if part]
    for name, equals, _ in pairs:
        if not equals or not name:
            raise UserError(f"{flag} {text!r}: write NAME=VALUE,NAME=VALUE")
    return {name: _value(text) for name, _, text in pairs}


def _value(text: str) -> Any:
    """Reads a number or a truth value, or else returns the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def plan(arguments: argparse.Namespace, suite: Suite) -> list[Job]:
    """Lists what is to be run, and where it goes.

    Raises:
        UserError: The checkpoint cannot be read, a setting is not for this model or suite, or a folder holds a run
            with other settings.
    """
    from diffusionvl.evaluation.kinds import files_state, kind_of_checkpoint  # late: torch takes seconds to import
    from diffusionvl.evaluation.settings import check_names, resolve

    kind, block_size = kind_of_checkpoint(arguments.model)
    given = parse_pairs(arguments.gen_kwargs, "--gen-kwargs")
    check_names(given, "--gen-kwargs")
    if fixed := sorted(set(given) & suite.varied):
        raise UserError(f"--gen-kwargs: {fixed[0]} is what the ways of suite {suite.name} differ in; leave it out")
    options = {**suite.model_args, **parse_pairs(arguments.model_args, "--model-args")}
    jobs = []
    for run in suite.runs(kind, block_size):
        if arguments.tasks and run.task.name not in arguments.tasks:
            continue
        run = replace(run, gen_kwargs={**run.gen_kwargs, **given})
        resolve(kind, block_size, {}, run.gen_kwargs)  # refuses what the plugin would refuse, before anything slow
        asked = {
            "model": str(Path(arguments.model).resolve() if Path(arguments.model).is_dir() else arguments.model),
            "files": files_state(Path(arguments.model)),
            "model_args": {name: str(value) for name, value in options.items()},
            "gen_kwargs": {name: str(value) for name, value in run.gen_kwargs.items()},
            "limit": arguments.limit,
        }
        jobs.append(Job(run, arguments.out / arguments.name / suite.name / run.name, asked, kind, block_size))
    for job in jobs:
        found = read_run(job.folder)
        if found and found.asked != job.asked and not arguments.overwrite:
            other = [name for name in job.asked if found.asked.get(name) != job.asked[name]]
            changes = "; ".join(
                "of files that have changed"
                if name == "files"
                else f"{name} {found.asked.get(name)} there, {job.asked[name]} now"
                for name in other
            )
            raise UserError(f"{job.folder} holds another run ({changes}); give another --out or --name, or --overwrite")
    return jobs


def prepare_local_data() -> None:
    """Writes the data of the local tasks, if it is missing.

    Raises:
        UserError: It cannot be written.
    """
    if not (EVAL.parent / "outputs" / "eval-data" / "easy_vqa" / "long.jsonl").exists():
        command = [sys.executable, "-m", "eval.tasks.make_data"]
        done = subprocess.run(command, cwd=EVAL.parent, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f"python -m eval.tasks.make_data failed: {done.stderr.strip()}")


def run_all(arguments: argparse.Namespace, suite: Suite, jobs: Sequence[Job]) -> int:
    """Runs what is not finished; one failure does not stop the rest.

    Returns:
        0, or 1 if a run failed.
    """
    failures = 0
    for number, job in enumerate(jobs, start=1):
        start = f"[{number}/{len(jobs)}] {arguments.name}: {job.run.name}"
        found = read_run(job.folder)
        record = found if found and found.asked == job.asked else None
        before = "finished before, " if record else ""
        if not record:
            print(f"{start}: running", flush=True)
        try:
            record = record or run_one(arguments, suite, job)
            if job.run.task.bertscore and "bertscore" not in record.metrics:
                record = add_bertscore(record)
        except (UserError, OSError) as error:
            failures += 1
            print(f"{start}: FAILED: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        else:
            print(f"{start}: {before}{summary(record)}", flush=True)
    if failures:
        print(f"eval/run.sh: error: {failures} of {len(jobs)} runs failed", file=sys.stderr)
        return 1
    print(f"results in {arguments.out / arguments.name / suite.name}")
    return 0


def summary(record: RunRecord) -> str:
    """Writes a run's main result, speed and duration."""
    main, speed = record.shown(record.main_metric), record.metrics["tokens_per_second"]
    return f"{record.main_metric} {main}, {speed:,.1f} tokens/s, {record.setup['seconds']:.0f} s"


def run_one(arguments: argparse.Namespace, suite: Suite, job: Job) -> RunRecord:
    """Runs one task and takes over its results.

    Raises:
        UserError: It failed; the message has the reason and the log's place.
    """
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    log, raw = job.folder / "log.txt", job.folder / "raw"
    command = lmms_eval_command(arguments, job, raw)
    environment = dict(os.environ)
    from diffusionvl.checkpoints.checkpoint import Checkpoint

    base = Checkpoint(arguments.model).adapter_base
    if suite.data == LOCAL and Path(base.path if base else arguments.model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"  # nothing is needed from there, so nothing is asked
    begin = time.time()
    with log.open("w", encoding="utf-8") as file:
        file.write(" ".join(command) + "\n")
        file.flush()
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise UserError(f"{failure_reason(log)} (exit code {done.returncode}; {log})")
    try:
        results, samples = collect(raw, job.folder, job.run.task.name)
        metrics, higher_is_better, errors = task_metrics(results, job.run.task.name, job.run.task.metric)
    except UserError as error:
        raise UserError(f"{error}: {failure_reason(log)} ({log})") from error
    shutil.rmtree(raw)
    settings = {name: value for name, value in job.run.gen_kwargs.items() if name != "until"}
    record = RunRecord(
        model=arguments.name,
        suite=suite.name,
        task=job.run.task.name,
        variant=job.run.variant,
        kind=job.kind,
        asked=job.asked,
        settings={"block_size": job.block_size, **settings} if job.block_size else settings,
        metrics=metrics,
        higher_is_better=higher_is_better,
        samples=samples,
        against=arguments.against,
        setup=setup(arguments, time.time() - begin),
        folder=job.folder,
        errors=errors,
    )
    write_run(record)
    return record


def lmms_eval_command(arguments: argparse.Namespace, job: Job, raw: Path) -> list[str]:
    """Builds the command line of lmms-eval. DEBUG makes it stop at errors; else several processes wait for ever."""
    launcher = [sys.executable]
    if arguments.nproc > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(arguments.nproc)]
    options = {"pretrained": job.asked["model"], **job.asked["model_args"]}
    if "showcase" not in options:
        options["showcase"] = str((job.folder / "showcase").resolve())
    flags = {
        "--model": "diffusionvl",
        "--model_args": joined(options),
        "--tasks": job.run.task.name,
        "--include_path": str(EVAL / "tasks"),
        "--batch_size": str(arguments.batch_size),
        "--gen_kwargs": joined(job.asked["gen_kwargs"]),
        "--limit": arguments.limit and str(arguments.limit),
        "--device": arguments.device,
        "--output_path": str(raw),
        "--verbosity": "DEBUG",
    }
    given = [part for flag, value in flags.items() if value for part in (flag, value)]
    # The reference's plugin is of the simple form: its prompts are a task's text, not its messages.
    form = ["--force_simple"] if options.get("prompt") == "reference" else []
    return [*launcher, "-m", "lmms_eval", *given, "--log_samples", *form]


def joined(pairs: Mapping[str, Any]) -> str:
    """Writes a mapping as lmms-eval reads it."""
    return ",".join(f"{name}={value}" for name, value in pairs.items())


def failure_reason(log: Path) -> str:
    """Returns the last error in a log, or its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [match[1] for line in lines if (match := REASON.match(line)) and "ChildFailedError" not in line]
    return (errors or lines or ["the log is empty"])[-1][:500]


def setup(arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Describes when and on what a run was made."""
    import torch

    cuda = torch.cuda.is_available() and arguments.device != "cpu"
    return {
        "batch_size": arguments.batch_size,
        "processes": arguments.nproc,
        "hardware": torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "lmms_eval": version("lmms_eval"),
        "diffusionvl": version("diffusionvl"),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
