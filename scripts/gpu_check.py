"""Runs the checks that need a GPU, each with a limit of its own, and writes what came out as JSON and as a page."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "datasets", "wrapt", "pytest")
TAIL = 40  # lines of a check's output that are kept


@dataclass
class Check:
    """One check, and what came out.

    Attributes:
        name: For the page.
        command: Arguments of Python.
        seconds: Its limit; all limits together stay under twelve minutes.
        needs: Packages without which it is left out.
        outcome: `passed`, `failed`, `out of time` or `left out: ...`.
        took: Seconds.
        tail: The last lines of its output.
    """

    name: str
    command: list[str]
    seconds: int
    needs: tuple[str, ...] = ()
    outcome: str = ""
    took: float = 0.0
    tail: str = ""


def checks(results: str) -> list[Check]:
    """All checks, the quick ones first. Each benchmark writes its own JSON, too, case by case."""
    cases = ["--cases", "324 + 150", "2880 + 150", "324 + 40, 150, 400", "--seconds", "4"]
    train = ["-m", "benchmarks.train_step", *cases]
    decode = ["-m", "benchmarks.decode", "--shape", "3B", "--dtype", "bfloat16", "--tokens", "64", "--full-steps", "1"]
    return [
        Check(
            "tests", ["-m", "pytest", "-m", "gpu", "-rs", "tests"], 300, ("pytest", "accelerate", "datasets", "peft")
        ),
        Check("training step, 3B", [*train, "--json", f"{results}_train_step.json"], 210, ("wrapt",)),
        Check("decoding, 3B", [*decode, "--json", f"{results}_decode.json"], 200, ("wrapt", "datasets")),
    ]


def run(check: Check) -> None:
    """Runs one check in a process group of its own, which ends with it."""
    missing = [name for name in check.needs if find_spec(name) is None]
    if missing:
        check.outcome = f"left out: {', '.join(missing)} not installed"
        return
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *check.command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=check.seconds)
        check.outcome = "passed" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        check.outcome = "out of time"
    check.took = round(time.monotonic() - begin, 1)
    check.tail = "\n".join(output.splitlines()[-TAIL:])


def machine() -> dict[str, Any]:
    """The date, the device and the versions."""
    import torch

    installed = {one.metadata["Name"]: one.version for one in distributions()}
    versions = {name: installed.get(name, "not installed") for name in PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {"date": date.today().isoformat(), "device": device, "python": platform.python_version(), **versions}


def page(facts: dict[str, Any], done: list[Check]) -> str:
    """The results as Markdown."""
    lines = ["# What a GPU shows", "", ", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    lines += ["| check | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {check.name} | {check.outcome} | {check.took:.0f} |" for check in done]
    for check in done:
        if check.tail:
            lines += ["", f"## {check.name}", "", "```", check.tail, "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit code 0 if everything that ran has passed, else 1."""
    facts = machine()
    stem = Path(sys.argv[1], f"gpu_check_{facts['date']}")
    stem.parent.mkdir(parents=True, exist_ok=True)
    done = checks(str(stem))
    for check in done:
        if facts["device"] != "no GPU":
            run(check)
        elif "pytest" in check.command:
            run(check)  # at least they are collected; each skips itself
            check.outcome = check.outcome.replace("passed", "collected and skipped: no GPU")
        else:
            check.outcome = "left out: no GPU"
        print(f"{check.name}: {check.outcome}", flush=True)
        # Written after each, so that a run that is stopped leaves what it has.
        stem.with_suffix(".json").write_text(
            json.dumps({**facts, "checks": [asdict(one) for one in done]}, indent=1) + "\n", encoding="utf-8"
        )
        stem.with_suffix(".md").write_text(page(facts, done), encoding="utf-8")
    print(f"wrote {stem}.json and .md")
    return any(check.outcome in ("failed", "out of time") for check in done)


if __name__ == "__main__":
    sys.exit(main())
