"""Packing: which documents share a row, so that a batch of short conversations holds little padding."""

from bisect import bisect_left, insort
from collections import defaultdict

import numpy as np


def pack(tokens: np.ndarray, images: np.ndarray, max_tokens: int, max_images: int) -> list[np.ndarray]:
    """Best-fit decreasing: the longest document first, each into the fullest row that still has room for it.

    Args:
        tokens: Length of each document's row, clean and noisy tokens [n].
        images: Images of each document [n].
        max_tokens: Longest row. A longer document stands alone.
        max_images: Images of a row at most. A document with more stands alone.

    Returns:
        The documents of each row, as ascending indices.
    """
    rows: list[list[int]] = []
    # Rows by the images and the tokens that they have room for, and the tokens in ascending order.
    open_rows: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    rooms: dict[int, list[int]] = defaultdict(list)
    for document in np.argsort(-tokens, kind="stable").tolist():
        length, count = int(tokens[document]), int(images[document])
        best: tuple[int, int] | None = None  # room for tokens, room for images
        for image_room, token_rooms in rooms.items():
            place = bisect_left(token_rooms, length)
            if image_room >= count and place < len(token_rooms):
                found = (token_rooms[place], image_room)
                best = found if best is None else min(best, found)
        if best is None:
            row, best = len(rows), (max_tokens, max_images)
            rows.append([])
        else:
            token_room, image_room = best
            same = open_rows[image_room][token_room]
            row = same.pop()
            if not same:
                rooms[image_room].remove(token_room)
        rows[row].append(document)
        token_room, image_room = best[0] - length, best[1] - count
        if token_room > 0 and image_room >= 0:
            same = open_rows[image_room][token_room]
            if not same:
                insort(rooms[image_room], token_room)
            same.append(row)
    return [np.sort(np.array(row)) for row in rows]
