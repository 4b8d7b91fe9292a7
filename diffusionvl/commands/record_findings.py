"""What becomes of each record of a data set in the encoder that trains."""

from torch.utils.data import Dataset

from ..data.images import open_image
from ..data.record import DataError, Picture, Record, Records, texts
from ..data.sources.records import read_records
from ..data.streams import IGNORED
from ..modeling.block_masks import CLEAN
from ..training import RowDataset
from .data_report import Finding, Problem

IMAGE_KINDS = ("missing image", "bad image")


def open_or_report(path: str, image_root: str | None, allow_web: bool) -> Records | Problem:
    """The records of a path, or what is wrong with it."""
    try:
        return read_records([path], image_root, check=False, allow_web=allow_web)
    except DataError as error:
        return Problem(error.kind, str(error))


def image_problem(image: Picture, name: str) -> Problem | None:
    """What is wrong with an image, if anything."""
    try:
        open_image(image, name)
    except DataError as error:
        return Problem(error.kind, str(error))
    return None


def notes_on(record: Record) -> list[str]:
    """What is odd about a record that can be used."""
    notes = []
    if record.messages[-1]["role"] != "assistant":
        notes.append("ends with a turn that has no answer, which is left out")
    for message in record.messages:
        if message["role"] == "assistant" and not message.keys() & {"tool_calls", "reasoning_content"}:
            notes += ["has an empty answer"] if not "".join(texts(message)).strip() else []
    return notes


class Checks(Dataset):
    """What becomes of each record."""

    def __init__(self, rows: RowDataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Finding:
        row, truncated, error = self.rows[index]
        if error is not None:
            return Finding(self._problems(index, error))
        if row is None:
            return Finding(name=self.rows.records[index].name, truncated=True)
        clean = int((row.stream_ids == CLEAN).sum())
        supervised = int((row.labels != IGNORED).sum())
        notes = notes_on(self.rows.records[index])
        return Finding([], row.name, clean, len(row), supervised, truncated, notes)

    def _problems(self, index: int, error: DataError) -> list[Problem]:
        """The problem that came up; of a record with a bad image, those with all its images."""
        if error.keys:
            return [Problem(f"unknown key {key}", str(error)) for key in error.keys]
        if error.kind not in IMAGE_KINDS:
            return [Problem(error.kind, str(error))]
        record = self.rows.records[index]
        found = [problem for image in record.images if (problem := image_problem(image, record.name))]
        return found or [Problem(error.kind, str(error))]  # the processor refused a picture that opens
