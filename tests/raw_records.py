"""Records as files hold them, and what is read from them."""

import os

from diffusionvl.data.record import Video
from diffusionvl.data.record_parser import RecordParser
from diffusionvl.data.references import ImageRoot

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def text(content):
    return {"type": "text", "text": content}


def image(path):
    return {"type": "image", "image": path}


def with_parts(*parts):
    return {"role": "user", "content": [*parts]}


def with_text(content):
    return {"role": "user", "content": content}


VIDEO = {"role": "user", "content": [{"type": "video"}]}


def with_images(count):
    return {"role": "user", "content": [{"type": "image"} for _ in range(count)]}


def video_part(**settings):
    return {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4", **settings}]}, ANSWER]}


def parse(root, **record):
    return RecordParser(ImageRoot(root)).parse(record, "data.jsonl:7")


def contents(record):
    return [message["content"] for message in record.messages]


def video(*paths, **settings):
    return {"type": "video", "video": Video(paths[0] if len(paths) == 1 else paths, settings)}


def turns_of(record):
    """Role and text of each turn; a picture is written as its file's name in brackets."""
    return [
        (
            message["role"],
            "".join(
                part["text"] if part["type"] == "text" else f"[{os.path.basename(part['image'])}]"
                for part in message["content"]
            ),
        )
        for message in record.messages
    ]
