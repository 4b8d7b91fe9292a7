"""What runs of `python -m diffusionvl.train` read and leave: records, logs, and the line by which they are refused."""

import json

from diffusionvl.train import main


def record(question, answer, *images):
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"images": list(images), "messages": messages}


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def refused(capfd, *argv):
    """The last line on stderr of a run that stops with exit code 2, the only one but for progress bars."""
    capfd.readouterr()
    assert main(list(argv)) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert [line for line in lines if "%|" not in line] == lines[-1:]
    assert lines[-1].startswith("diffusionvl train: error: ")
    return lines[-1]
