"""Records of WebDataset archives."""

import re
import tarfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..record import DataError, Record, SizedPicture
from ..record_parser import RecordParser
from ..references import ImageRoot
from .files import check_regular
from .json_records import decode, load_json

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
JUNK = "._"  # how the files begin that macOS puts beside others
MOST_BYTES = 2**28  # of a file


class Member(NamedTuple):
    """A file of an archive: its name, and where its content stands."""

    name: str
    begin: int
    size: int


class TarRecords:
    """Records of one `.tar` shard in WebDataset's form: files of one name and several suffixes are a sample.

    A sample holds a `.json` (a record) and its images. Where the record names them, by the whole name or by what
    follows the sample's own, they are shown as it says; else they fill its places in the order of the archive, or of
    the numbers in their names. The archive is not read as a stream: its headers say once where each file stands, so
    that samples can be shuffled over all shards and a resumed run goes on without reading what it has passed.

    Args:
        path: The archive, not compressed.
        parser: Reads each record.

    Raises:
        DataError: It cannot be read.
    """

    def __init__(self, path: Path, parser: RecordParser) -> None:
        self.path = path
        self.parser = parser
        check_regular(path)
        first: list[int] = []  # where the headers of each sample begin
        key = None
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isdir() or member.name.rpartition("/")[2].startswith(JUNK):
                        continue
                    if (own := sample_of(member.name)) != key:
                        key = own
                        first.append(member.offset)
                end = archive.offset
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{path}: cannot be read ({error}); give a .tar archive that is not compressed") from error
        self.bounds = np.array([*first, end], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> Record:
        if index >= len(self):
            raise IndexError(index)
        place = f"{self.path}:{index + 1}"
        with open(self.path, "rb") as file:
            members = self._members(file, int(self.bounds[index]), int(self.bounds[index + 1]), place)
            records = [member for member in members if member.name.lower().endswith(".json")]
            if len(records) != 1:
                raise DataError(f"{place}: the sample has {len(records)} .json files, not one; put its record in one")
            raw = load_json(decode(_read(file, records[0], place), self.path), Path(place))
            images = {member.name: _read(file, member, place) for member in members if member is not records[0]}
        if len(images) < len(members) - 1:
            raise DataError(f"{place}: the sample holds an image of one name twice; write the archive anew")
        if not images:
            return self.parser.parse(raw, place)
        root = self.parser.root
        shown = SampleImages(root.folder, root.given, root.allow_web, images, sample_of(records[0].name))
        record = replace(self.parser, root=shown).parse(raw, place, ordered(images))
        used = [image.source if isinstance(image, SizedPicture) else image for image in record.images]
        if left := [name for name, content in images.items() if not any(content is image for image in used)]:
            raise DataError(f"{place}: the record shows nothing of {left}, which its sample holds", "image places")
        return record

    def _members(self, file: Any, begin: int, end: int, place: str) -> list[Member]:
        """The record and the images of a sample, whose headers stand between two places of the archive."""
        file.seek(begin)
        members = []
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.offset >= end:
                    break
                name = member.name
                if member.isdir() or name.rpartition("/")[2].startswith(JUNK):
                    continue
                suffix = f".{name.rpartition('.')[2].lower()}"
                if not member.isfile() or member.issparse() or suffix not in (".json", *IMAGE_SUFFIXES):
                    raise DataError(f"{place}: the sample holds {name!r}, which is neither a record nor an image")
                members.append(Member(name, member.offset_data, member.size))
        return members


def sample_of(name: str) -> str:
    """What the names of a sample's files begin with: all up to the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _read(file: Any, member: Member, place: str) -> bytes:
    """The content of a file in an archive."""
    if member.size > MOST_BYTES:
        raise DataError(f"{place}: {member.name!r} has {member.size} bytes, more than {MOST_BYTES}")
    file.seek(member.begin)
    content = file.read(member.size)
    if len(content) < member.size:
        raise DataError(f"{place}: the archive ends inside {member.name!r}; write it anew", "broken line")
    return content


@dataclass(frozen=True)
class SampleImages(ImageRoot):
    """Where the paths in a sample's record lead: to the images of the sample, by their names.

    Attributes:
        images: The sample's images by the names of their files.
        sample: What these names begin with.
    """

    images: dict[str, bytes] = field(default_factory=dict)
    sample: str = ""
    _strange: set[str] = field(default_factory=set)

    def locate(self, path: str, name: str) -> str | bytes:
        """The image of a name; a single image stands for whatever name the record has for it."""
        names = {path, path.removeprefix("./"), path.rpartition("/")[2]}
        for own, content in self.images.items():
            if names & {own, own.rpartition("/")[2], own[len(self.sample) + 1 :]}:
                return content
        self._strange.add(path)
        if len(self.images) > 1 or len(self._strange) > 1:
            raise DataError(
                f"{name}: the sample holds no image {path!r}; it holds {sorted(self.images)}", "image places"
            )
        return next(iter(self.images.values()))


def ordered(images: dict[str, bytes]) -> list[bytes]:
    """Images in the order of the archive, or in that of the numbers that their names differ in: 2 comes before 10."""
    pieces = [re.split(r"(\d+)", name) for name in images]
    if len({tuple(piece[::2]) for piece in pieces}) > 1:
        return [*images.values()]
    numbers = [[(len(digits), digits) for digits in (own.lstrip("0") for own in piece[1::2])] for piece in pieces]
    return [content for _, content in sorted(zip(numbers, images.values(), strict=True))]
