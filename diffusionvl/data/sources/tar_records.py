"""Records of WebDataset archives."""

import tarfile
from pathlib import Path

import numpy as np

from ..layouts import ImageRoot, parse_record
from ..record import DataError, Record
from .json_records import decode, load_json

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
JSON, IMAGE = 0, 1


class TarRecords:
    """Records of one `.tar` shard in WebDataset's layout: files of one name and several suffixes are a sample.

    A sample holds a `.json` (a record) and the images for the record's places, in the order of the archive. The
    archive is not read as a stream: its headers tell once where each file stands, so that samples can be shuffled over
    all shards and a resumed run goes on without reading what it has passed.

    Args:
        path: The archive, not compressed.
        image_root: Where image paths start, for samples without images of their own.

    Raises:
        DataError: It cannot be read, or a sample has no record.
    """

    def __init__(self, path: Path, image_root: ImageRoot) -> None:
        self.path = path
        self.image_root = image_root
        files: list[tuple[int, int, int, int]] = []  # sample, kind, begin and size of each file
        key, sample = "", -1
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    folder, slash, base = member.name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    suffix = f".{suffix.rpartition('.')[2].lower()}"
                    kind = JSON if suffix == ".json" else IMAGE if suffix in IMAGE_SUFFIXES else None
                    if not member.isfile() or kind is None:
                        continue
                    if folder + slash + stem != key:
                        key, sample = folder + slash + stem, sample + 1
                    files.append((sample, kind, member.offset_data, member.size))
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{path}: cannot be read ({error}); give a .tar archive that is not compressed") from error
        table = np.array(files, dtype=np.int64).reshape(-1, 4)
        self.files = table[:, 1:]
        self.first = np.searchsorted(table[:, 0], np.arange(sample + 2))  # where each sample's files begin

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, index: int) -> Record:
        if index >= len(self):
            raise IndexError(index)
        place = f"{self.path}:{index + 1}"
        record: list[bytes] = []
        images: list[bytes] = []
        with open(self.path, "rb") as file:
            for kind, begin, size in self.files[self.first[index] : self.first[index + 1]].tolist():
                file.seek(begin)
                (record if kind == JSON else images).append(file.read(size))
        if len(record) != 1:
            raise DataError(f"{place}: the sample has {len(record)} .json files, not one; put its record in one")
        raw = load_json(decode(record[0], self.path), Path(place))
        if isinstance(raw, dict) and images:  # paths in the record name what the archive holds
            raw = {key: value for key, value in raw.items() if key != "image"} | {"images": images}
        return parse_record(raw, place, self.image_root)
