"""Folders as `eval/run.sh` leaves them, without having run anything."""

import json

from PIL import Image

from eval.results import RunRecord, write_run

MACHINE = {"hardware": "CPU, 2 cores", "threads": 2, "date": "2026-11-28", "torch": "9.9"}
SPEED = {"tokens_per_second": 100.0, "forwards_per_token": 1.0, "seconds_to_first_block": 0.1}


def finished_run(out, model="block-diffusion", suite="local-speed", task="easy_vqa_long", variant="", **changes):
    """A finished run of two questions, the second one answered wrongly; fields of its record can be changed."""
    name = f"{task}@{variant}" if variant else task
    folder = out / model / suite / name
    (folder / "showcase" / task).mkdir(parents=True)
    metrics = {**SPEED, "paper_tokens_per_second": 50.0, "exact_match": 0.5, **changes.pop("metrics", {})}
    record = RunRecord(
        **{
            "model": model,
            "suite": suite,
            "task": task,
            "variant": variant,
            "kind": "ar" if model == "ar" else "block_diffusion",
            "asked": {"model": f"models/{model}", "limit": None},
            "settings": {"max_new_tokens": 96, "block_size": 8},
            "metrics": metrics,
            "higher_is_better": {"exact_match": True},
            "samples": 2,
            "against": "",
            "setup": {**MACHINE, "seconds": 1.0, "batch_size": 1, "processes": 1},
            "folder": folder,
            **changes,
        }
    )
    samples = []
    for number, (answer, score) in enumerate((("red", 1.0), (f"<b>{model}</b>", 0.0))):
        samples.append({"doc_id": number, "target": "red", "filtered_resps": answer, "exact_match": score})
        card = {"task": task, "number": number, "question": f"Which colour, {number}?", "answer": answer}
        film = "<div class='film'>film</div>" if number == 0 and record.kind != "ar" else ""
        card |= {"images": [f"{number}-0.png"], "film": film}
        (folder / "showcase" / task / f"{number}.json").write_text(json.dumps(card))
        Image.new("RGB", (8, 6), "red").save(folder / "showcase" / task / f"{number}-0.png")
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    write_run(record)
    return record
