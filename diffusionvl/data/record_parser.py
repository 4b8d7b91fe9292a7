"""From one parsed JSON value, or the row of a table, to a `Record`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from .dialects import LOSS_KEYS, ROLES, Turn, as_list, dialect_of, either, parse_json
from .parts import KINDS, Content, Key, Place, fill, place_in_front, places_of, read_content
from .record import DataError, Record, SizedPicture
from .references import ImageRoot, brief, read_picture, read_video

TURN_KEYS = ("role", "from", "content", "value", *LOSS_KEYS, "tool_calls", "reasoning_content")
TOOL_KEYS = ("name", "tool_call_id")  # of a tool's turn, for the chat template


@dataclass(frozen=True)
class RecordParser:
    """Reads records of every dialect; a key that is not understood is an error.

    Attributes:
        root: Where image paths start.
        columns: What keys of the records are called otherwise: `{"images": "photo"}` reads `photo` as `images`.
        ignore: Keys that are left out.
        answered: Whether a record needs an answer to learn from.
    """

    root: ImageRoot
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    answered: bool = True

    def parse(self, raw: Any, place: str, images: Sequence[bytes] = ()) -> Record:
        """Turns one record of any dialect into chat messages.

        Args:
            raw: The parsed JSON, or the row of a table; null counts as absent.
            place: Where it stands, for messages.
            images: What fills the places of images where the record itself names none.

        Raises:
            DataError: It is written in no known dialect, has keys that are not understood, an unknown role, another
                number of images than of places for them, or an image outside the root.
        """
        if not isinstance(raw, dict):
            raise DataError(f"{place}: a record must be an object with 'messages' or 'conversations', got {brief(raw)}")
        raw = self._renamed(raw, place)
        name = f"{place} (id {brief(raw['id'])})" if "id" in raw else place
        dialect = dialect_of(raw, name)
        unknown = [(key, "a record") for key in raw if key not in dialect.knows]
        turns = [self._turn(turn, name) for turn in dialect.turns(raw, name)]
        if (system := raw.get("system", "")) != "":
            if any(turn["role"] == "system" for turn in turns[:1]):
                raise DataError(f"{name}: has 'system' and a system turn; keep one of them")
            turns.insert(0, {"role": "system", "content": system})
        given = {kind: _listed(either(raw, (f"{kind}s", kind), name), f"{kind}s", name) for kind in KINDS}
        contents = [read_content(turn.get("content", turn.get("value")), name, unknown) for turn in turns]
        if not given["image"] and not any(place.source for place in places_of(contents, "image")):
            given["image"] = [*images]
        _place_as_llava(turns, contents, given)
        asked = [content for turn, content in zip(turns, contents, strict=True) if turn["role"] == "user"]
        if dialect.in_front and asked:
            place_in_front(asked[0], contents, given)
        messages = [_message(turn, name, unknown) for turn in turns]
        if lost := {f"{key!r} of {where}": None for key, where in unknown if key not in self.ignore}:
            shown = ", ".join([*lost][:5])
            remedy = "drop it, or name it under `columns` or `ignore` of a mixture"
            raise DataError(f"{name}: {shown}: not understood; {remedy}", "unknown key", [*lost])
        fill(contents, given, name)
        for message, content in zip(messages, contents, strict=True):
            message["content"] = [self._part(piece, name) for piece in content]
        learnt = [message for message in messages if message["role"] == "assistant" and message.get("supervised", True)]
        if self.answered and not learnt:
            raise DataError(f"{name}: has no assistant turn to learn from; add one or drop the record")
        return Record(messages, name, _tools(raw.get("tools"), name))

    def _renamed(self, raw: dict[str, Any], name: str) -> dict[str, Any]:
        """A record or turn without what is absent, its keys by the names that are known here."""
        if not self.columns and not self.ignore:
            return {key: value for key, value in raw.items() if value is not None}
        names = {theirs: ours for ours, theirs in self.columns.items()}
        kept = {key: value for key, value in raw.items() if value is not None and key not in self.ignore}
        renamed = {names.get(key, key): value for key, value in kept.items()}
        if len(renamed) < len(kept):
            raise DataError(f"{name}: `columns` {dict(self.columns)} gives two keys one name; put one under `ignore`")
        return renamed

    def _turn(self, turn: Any, name: str) -> Turn:
        """A turn with a known role."""
        if not isinstance(turn, dict):
            raise DataError(f"{name}: a turn must be an object, got {brief(turn)}")
        turn = self._renamed(turn, name)
        said = either(turn, ("role", "from"), name)
        if not isinstance(said, str) or said not in ROLES:
            raise DataError(f"{name}: unknown role {brief(said)}; known are {sorted(ROLES)}")
        content = either(turn, ("content", "value"), name)
        if said == "function_call":  # LLaMA-Factory's
            rest = {key: value for key, value in turn.items() if key not in ("content", "value")}
            return {**rest, "role": "assistant", "tool_calls": _called(content, name)}
        if content is None and "tool_calls" not in turn:
            raise DataError(f"{name}: a turn's content must be text or a list of parts, got None")
        return {**turn, "role": ROLES[said]}

    def _part(self, piece: str | Place, name: str) -> dict[str, Any]:
        """A text or a filled place as a part of a message."""
        if isinstance(piece, str):
            return {"type": "text", "text": piece}
        if piece.kind == "video":
            video = read_video(piece.source, name, self.root)
            return {"type": "video", "video": replace(video, settings=piece.settings)}
        picture = read_picture(piece.source, name, self.root)
        return {"type": "image", "image": SizedPicture(picture, piece.settings) if piece.settings else picture}


def _listed(images: Any, what: str, name: str) -> list[Any]:
    """What stands under `images` or `image`, one, several or none, as a list; or under `videos` or `video`."""
    if images is None or images == "":
        return []
    if isinstance(images, list) or (isinstance(images, str) and images.startswith("[")):
        return as_list(images, what, name)
    if isinstance(images, str | bytes | dict | Image.Image):
        return [images]
    raise DataError(f"{name}: {what} must be a path or a list of paths, got {brief(images)}")


def _place_as_llava(turns: list[Turn], contents: list[Content], given: dict[str, list[Any]]) -> None:
    """LLaVA's turns: a single image goes first, wherever its mark stands, and a video may be marked as an image."""
    for turn, content in zip(turns, contents, strict=True):
        if "from" not in turn:
            continue
        if given["video"] and not given["image"]:
            content[:] = [Place("video") if piece == Place("image") else piece for piece in content]
        places = [piece for piece in content if isinstance(piece, Place)]
        if len(places) == 1 and places[0].source is None:
            text = "".join(piece for piece in content if isinstance(piece, str)).strip()
            content[:] = [places[0], *([text] if text else [])]


def _message(turn: Turn, name: str, unknown: list[Key]) -> dict[str, Any]:
    """A turn's message but for its content."""
    role = turn["role"]
    message: dict[str, Any] = {"role": role}
    known = (*TURN_KEYS, *TOOL_KEYS) if role == "tool" else TURN_KEYS
    unknown += [(key, "a turn") for key in turn if key not in known]
    if not _carries_loss(turn, name):
        message["supervised"] = False
    message |= {key: turn[key] for key in TOOL_KEYS if key in turn}
    if turn.get("reasoning_content"):
        if not isinstance(turn["reasoning_content"], str):
            raise DataError(f"{name}: 'reasoning_content' must be text, got {brief(turn['reasoning_content'])}")
        message["reasoning_content"] = turn["reasoning_content"]
    if turn.get("tool_calls"):
        calls = as_list(turn["tool_calls"], "tool_calls", name)
        message["tool_calls"] = [_tool_call(call, name, unknown) for call in calls]
    if role != "assistant" and message.keys() & {"reasoning_content", "tool_calls"}:
        raise DataError(f"{name}: a {role} turn has 'reasoning_content' or 'tool_calls'; only assistant turns may")
    return message


def _carries_loss(turn: Turn, name: str) -> bool:
    """Whether a turn's own mark says that its response is learnt; without one, it is."""
    marks = {key: turn[key] for key in LOSS_KEYS if key in turn}
    if not marks:
        return True
    for key, value in marks.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise DataError(f"{name}: {key!r} of a turn must be true or false, 1 or 0, got {brief(value)}")
    if len({bool(value) for value in marks.values()}) > 1:
        raise DataError(f"{name}: a turn has both {marks}; keep one of them")
    wanted = all(marks.values())
    if wanted and turn["role"] != "assistant":
        raise DataError(f"{name}: a {turn['role']} turn asks for loss ({marks}); only assistant turns carry it")
    return wanted


def _tools(tools: Any, name: str) -> list[Any] | None:
    """What the chat template is given as `tools`."""
    listed = as_list(tools, "tools", name) if tools else []
    if not all(isinstance(tool, dict) for tool in listed):
        raise DataError(f"{name}: tools must be objects, got {brief(listed)}")
    return listed or None


def _tool_call(call: Any, name: str, unknown: list[Key]) -> dict[str, Any]:
    """A call as chat templates read it: arguments as an object."""
    call = {key: value for key, value in call.items() if value is not None} if isinstance(call, dict) else {}
    function = call.pop("function", None) or {key: call.pop(key) for key in ("name", "arguments") if key in call}
    unknown += [(key, "a tool call") for key in call if key not in ("id", "type")]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{name}: a tool call needs the name of a function, got {brief(function)}")
    unknown += [(key, "a tool call's function") for key in function if key not in ("name", "arguments")]
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # as OpenAI has them
        arguments = parse_json(arguments, "arguments", name)
    return {**call, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _called(content: Any, name: str) -> list[Any]:
    """The calls in a turn of `function_call`."""
    calls = parse_json(content, "function_call", name) if isinstance(content, str) else content
    return calls if isinstance(calls, list) else [calls]
