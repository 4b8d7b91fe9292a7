"""Videos: qwen-vl-utils draws their frames, as Qwen-VL models were trained on them."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from .images import open_image
from .record import DataError, Video

REMEDY = "videos need torchvision and qwen-vl-utils; install them with `pip install 'diffusionvl[video]'`"
PACKAGES = ("torchvision", "qwen_vl_utils")
VIDEO_GRID = "video_grid_thw"  # what a video processor gives that cuts videos of any shape into a grid (Qwen-VL)


def video_inputs(videos: Sequence[Video], text: str, processor: Any, name: str) -> dict[str, Any]:
    """The arguments that a processor takes for videos beside their text; none for no videos.

    Args:
        videos: In the order of their places in the text.
        text: As the chat template has written it.
        processor: A Hugging Face processor of a Qwen-VL family.
        name: Whose videos they are, for messages.

    Raises:
        DataError: A video is missing or cannot be read, a package is missing, the model reads no videos, or its chat
            template leaves them out.
    """
    if not videos:
        return {}
    if any(find_spec(package) is None for package in PACKAGES):
        raise DataError(f"{name}: {videos[0]}: {REMEDY}", "bad video")
    if (
        "video_processor" not in processor.get_attributes()
        or VIDEO_GRID not in processor.video_processor.model_input_names
    ):
        raise DataError(
            f"{name}: {videos[0]}: videos are read for models of the Qwen-VL families alone; give its frames as images",
            "bad video",
        )
    places = text.count(processor.video_token)
    if places != len(videos):
        raise DataError(f"{name}: the chat template writes {places} places for {len(videos)} video(s); mend it")
    read = [read_video(video, processor.video_processor.patch_size, name) for video in videos]
    return {
        "videos": [frames for frames, _ in read],
        "video_metadata": [metadata for _, metadata in read],
        "do_sample_frames": False,  # they are drawn
    }


def read_video(video: Video, patch_size: int, name: str) -> tuple[Tensor, dict[str, Any]]:
    """Draws the frames of a video.

    Args:
        video: A file or frames. Two frames a second are drawn unless its settings say otherwise.
        patch_size: Pixels along a patch of the vision tower.
        name: Whose video it is, for messages.

    Returns:
        Frames [F, 3, height, width], 0 to 255, scaled so that patches fit; and their indices and rate.

    Raises:
        DataError: A file is missing or cannot be read.
    """
    from qwen_vl_utils.vision_process import fetch_video

    if isinstance(video.source, str):
        if not Path(video.source).is_file():
            raise DataError(f"{name}: video {video.source!r} does not exist; check 'image_root'", "missing video")
        source: Any = video.source
    else:
        source = [open_image(path, name) for path in video.source]
    try:
        frames, metadata = fetch_video({"video": source, **video.settings}, patch_size, return_video_metadata=True)
    except Exception as error:  # decoders raise errors of their own kinds
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{name}: {video} cannot be read: {reason}; replace it or drop the record", "bad video"
        ) from error
    return frames, metadata
