"""Bytes -> one call of an entry point of `fastmpi._C`.

The fuzzer and the tests decode alike, so that what the fuzzer finds can be replayed. An entry
builds good arguments, and `spoil` makes some of them bad: sizes that lie, strides that are
negative or zero, shapes that overflow, types that are other than promised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Arguments = list[Any]

MAX_LENGTH = 400  # tokens of a sample
HUGE = 1 << 62  # rows of an array without columns: legal, and takes no memory
# No value between 2**20 and 2**31 - 1: results of that size would be legal.
EXTREMES = [0, -1, 1, 2, 2**31 - 1, -(2**31), 2**31, 2**32, 2**40, 2**63 - 1, -(2**63), 2**64]


class Source:
    """Reads numbers from bytes, and zeros after their end."""

    def __init__(self, data: bytes, extension: Any) -> None:
        self._data, self._at = data, 0
        self.extension = extension

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, limit: int) -> int:
        return (self.byte() if limit <= 256 else self.byte() << 8 | self.byte()) % limit

    def choose(self, values: Sequence[Any]) -> Any:
        return values[self.below(len(values))]

    def side(self) -> int:
        """Of a picture."""
        return self.byte() % 97 if self.byte() < 250 else 150 + self.byte()


def offsets_of(parts: Sequence[Sequence[Any]]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


def joined(parts: Sequence[Sequence[int]], dtype: Any) -> np.ndarray:
    return np.array([value for part in parts for value in part], dtype)


def samples(source: Source) -> Arguments:
    """ids, image slots, offsets: each sample begins as one before it, and goes on with runs."""
    made: list[list[tuple[int, int]]] = [[]]
    for _ in range(source.below(80)):
        earlier = made[source.below(len(made))]
        sample = earlier[: source.below(len(earlier) + 1)]
        for _ in range(source.below(4)):
            sample = sample + [(source.byte() - 2, source.below(5) - 2)] * source.below(90)
        made.append(sample[:MAX_LENGTH])
    ids = joined([[token for token, _ in sample] for sample in made[1:]], np.int64)
    slots = joined([[slot for _, slot in sample] for sample in made[1:]], np.int32)
    return [ids, slots, offsets_of(made[1:])]


def image_samples(source: Source, sizes: Sequence[int]) -> list[list[int]]:
    """Slots of samples of text and whole images, sometimes cut."""
    made = []
    for _ in range(source.below(8)):
        slots: list[int] = []
        for _ in range(source.below(8)):
            if sizes and source.byte() % 2:
                image = source.below(len(sizes))
                slots += [image] * min(sizes[image], MAX_LENGTH)
            else:
                slots += [-1 - source.below(2)] * source.below(40)
        made.append(slots[: len(slots) - source.byte() // 240])
    return made


def grids(source: Source) -> tuple[np.ndarray, int]:
    merge = 1 + source.below(3)
    sides = [[1, merge * (1 + source.below(6)), merge * (1 + source.below(6))] for _ in range(3)]
    return np.array(sides[: source.below(4)], np.int32).reshape(-1, 3), merge


def forest_rows(source: Source, sizes: Sequence[int]) -> Arguments:
    """Slots and parents of rows: stretches that hang from any row before them."""
    slots: list[int] = []
    parents: list[int] = []
    for stretch in image_samples(source, sizes):
        if not stretch:
            continue
        above = source.below(len(slots) + 1) - 1
        parents += [above, *range(len(slots), len(slots) + len(stretch) - 1)]
        slots += stretch
    return [np.array(slots, np.int32), np.array(parents, np.int32)]


def mrope_positions(source: Source) -> Arguments:
    grid, merge = grids(source)
    parts = image_samples(source, (grid.prod(axis=1) // merge**2).tolist())
    return [joined(parts, np.int32), offsets_of(parts), grid, merge, threads(source)]


def mrope_batch_positions(source: Source) -> Arguments:
    grid, merge = grids(source)
    parts = image_samples(source, (grid.prod(axis=1) // merge**2).tolist())
    width = max(map(len, parts), default=0) + source.below(3)
    slots = np.full((len(parts), width), source.below(4) - 2, np.int32)
    for row, part in zip(slots, parts, strict=True):
        row[: len(part)] = part
    lengths = np.array([len(part) for part in parts], np.int64)
    return [slots, lengths, grid, merge, threads(source), np.zeros((3, *slots.shape), np.int32)]


def mrope_forest_positions(source: Source) -> Arguments:
    grid, merge = grids(source)
    return [*forest_rows(source, (grid.prod(axis=1) // merge**2).tolist()), grid, merge]


def image_sizes(source: Source) -> np.ndarray:
    return np.array([1 + source.below(12) for _ in range(source.below(5))], np.int32)


def linear_positions(source: Source) -> Arguments:
    sizes = image_sizes(source)
    parts = image_samples(source, sizes.tolist())
    return [joined(parts, np.int32), offsets_of(parts), sizes, threads(source)]


def linear_forest_positions(source: Source) -> Arguments:
    sizes = image_sizes(source)
    return [*forest_rows(source, sizes.tolist()), sizes]


def placeholders(source: Source, expanded: bool) -> Arguments:
    """Rows with a placeholder for each image they show, or as many as it takes."""
    sizes = image_sizes(source)
    ids, shown = [], []
    for _ in range(source.below(6)):
        row: list[int] = []
        images: list[int] = []
        for _ in range(source.below(12)):
            if len(sizes) and source.byte() % 2:
                images.append(source.below(len(sizes)))
                row += [9] * (int(sizes[images[-1]]) if expanded else 1)
            else:
                row.append(source.below(12))
        ids.append(row)
        shown.append(images)
    tokens, images = joined(ids, np.int64), joined(shown, np.int32)
    return [tokens, offsets_of(ids), 9, images, offsets_of(shown), sizes]


def distinct_keys(source: Source) -> Arguments:
    rows, width = source.below(60), 1 + source.below(20)
    first = np.array([source.below(40) for _ in range(rows)], np.uint8)
    return [np.repeat(first, width).reshape(rows, width)]


def feature_rows(source: Source) -> Arguments:
    sizes = image_sizes(source)
    slots = joined(image_samples(source, sizes.tolist()), np.int32)
    within = np.array([source.below(12) for _ in range(min(len(slots), 20))], np.int32)
    return [slots, np.resize(within, slots.shape), sizes]


def pixels(source: Source, height: int, width: int) -> np.ndarray:
    channels = 3 + (source.byte() > 200)
    count = height * width * channels
    return (np.arange(count) * source.byte() % 256).astype(np.uint8).reshape(height, width, -1)


def pictures(source: Source) -> list[np.ndarray]:
    return [pixels(source, 1 + source.side(), 1 + source.side()) for _ in range(source.below(4))]


def table(source: Source) -> np.ndarray | None:
    return source.choose([None, np.ones((3, 256), np.float32), np.ones((3, 256), np.uint16)])


def memory(shape: Sequence[int], like: np.ndarray | None) -> np.ndarray:
    return np.zeros(shape, np.uint8 if like is None else like.dtype)


def threads(source: Source) -> int:
    return source.choose([1, 1, 2, 3])


def patch_rule(source: Source) -> tuple[int, int, int, int]:
    patch, merge = source.choose([14, 16, 1, 2, 3, 5]), 1 + source.below(3)
    least = 1 + source.below(50) * source.byte()
    return patch, merge, least, least + source.below(50) * source.byte()


def patch_grids(source: Source) -> Arguments:
    sizes = [[source.side(), source.side()] for _ in range(source.below(4))]
    return [np.array(sizes, np.int64).reshape(-1, 2), *patch_rule(source)]


def image_patches(source: Source) -> Arguments:
    rule, images, values = patch_rule(source), pictures(source), table(source)
    frames = 1 if values is None else 1 + source.below(3)
    sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
    try:
        count = int(source.extension.patch_grids(sizes, *rule).prod(axis=1).sum())
    except ValueError:
        count = 1
    out = memory((count, 3 * frames * rule[0] ** 2), values)
    return [images, *rule, frames, values, source.below(2) == 1, threads(source), out]


def image_crops(source: Source) -> Arguments:
    images, values = pictures(source), table(source)
    edge = 1 + source.below(60)
    crop = (1 + source.below(edge), 1 + source.below(edge))
    out = memory((len(images), 3, *crop), values)
    return [images, edge, *crop, values, source.below(2) == 1, threads(source), out]


def resize_image(source: Source) -> Arguments:
    image = pixels(source, 1 + source.side(), 1 + source.side())
    out = memory((1 + source.side(), 1 + source.side(), 3), None)
    return [image, source.below(2) == 1, threads(source), out]


def expand_patches(source: Source) -> Arguments:
    values = table(source)
    rows, columns, frames = source.below(200), 3 * source.below(20), 1 + source.below(3)
    if columns == 0 and source.byte() % 4 == 1:
        rows = source.choose([2**31, 2**40, 2**59])
    bytes_ = memory((rows, columns), None)
    return [bytes_, values, frames, threads(source), memory((rows, frames * columns), values)]


def content_hash(source: Source) -> Arguments:
    data = np.full(source.below(5000), source.byte(), np.uint8)
    return [data, [source.byte() for _ in range(source.below(140))], 2**64 - 1 - source.byte()]


def build_forest(source: Source) -> Arguments:
    return [*samples(source), source.below(2) == 1, threads(source)]


def plan_microbatches(source: Source) -> Arguments:
    arrays = samples(source)
    longest = int(np.diff(arrays[2]).max(initial=0))
    return [*arrays, longest + source.below(300), source.below(2) == 1]


def plan_ranks(source: Source) -> Arguments:
    arrays = samples(source)
    longest = int(np.diff(arrays[2]).max(initial=1))
    groups = np.array([source.below(9) for _ in range(len(arrays[2]) - 1)], np.int64)
    limit = longest + source.below(300)
    costs = np.array([source.below(9) for _ in range(len(arrays[0]) * source.below(2))], np.int64)
    return [*arrays, groups, 1 + source.below(5), limit, source.below(2) == 1, costs]


def balanced_bins(source: Source) -> Arguments:
    costs = [source.below(source.choose([10, 256, 65536])) for _ in range(source.below(50))]
    return [np.array(costs, np.int64), 1 + source.below(20)]


ENTRIES: dict[str, Callable[[Source], Arguments]] = {
    "assign_image_slots": lambda source: placeholders(source, expanded=True),
    "balanced_bins": balanced_bins,
    "build_forest": build_forest,
    "content_hash": content_hash,
    "distinct_keys": distinct_keys,
    "expand_patches": expand_patches,
    "expand_placeholders": lambda source: placeholders(source, expanded=False),
    "feature_rows": feature_rows,
    "image_crops": image_crops,
    "image_patches": image_patches,
    "linear_forest_positions": linear_forest_positions,
    "linear_positions": linear_positions,
    "mrope_batch_positions": mrope_batch_positions,
    "mrope_forest_positions": mrope_forest_positions,
    "mrope_positions": mrope_positions,
    "patch_grids": patch_grids,
    "plan_microbatches": plan_microbatches,
    "plan_ranks": plan_ranks,
    "resize_image": resize_image,
}


def with_extreme(source: Source, array: np.ndarray) -> np.ndarray:
    """One value changed, to an extreme of the type or to a neighbour."""
    array = array.copy()
    if array.size and array.dtype.kind in "iu":
        flat, at = array.reshape(-1), source.below(array.size)
        value = source.choose([*EXTREMES, int(flat[at]) + 1, int(flat[at]) - 1])
        bits = 8 * array.itemsize
        flat[at] = np.array([value % 2**bits], f"u{array.itemsize}").view(array.dtype)[0]
    return array


def unaligned(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"x" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


ARRAY_SPOILERS: list[Callable[[Source, np.ndarray], Any]] = [
    with_extreme,
    with_extreme,
    lambda _, a: a[:-1] if a.ndim else a,
    lambda _, a: np.concatenate([a, a[:1]]) if a.ndim else a,
    lambda _, a: a[::-1] if a.ndim else a,
    lambda _, a: a[::2] if a.ndim else a,
    lambda _, a: np.asfortranarray(a),
    lambda _, a: a.T,
    lambda _, a: unaligned(a) if a.nbytes else a,
    lambda source, a: a.astype(source.choose([np.int8, np.int32, np.int64, np.float32, ">i8"])),
    lambda _, a: a.astype(object),
    lambda _, a: a[..., None],
    lambda _, a: a[None],
    lambda _, a: a.reshape(-1),
    lambda _, a: np.broadcast_to(a[:1], (2**40, *a.shape[1:])) if a.size else a,
    lambda source, a: np.zeros((0, source.choose([2**31, 2**40, HUGE])), a.dtype),
    lambda source, a: np.zeros((source.choose([2**31, 2**40, HUGE]), 0), a.dtype),
    lambda _, a: np.zeros((), a.dtype),
    lambda _, a: np.zeros((0,) * a.ndim, a.dtype),
    lambda _, a: a.tolist() if a.size < 1000 else None,
    lambda _, a: None,
]


def spoiled(source: Source, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if max(value.shape, default=0) > 2**24:  # as bad as it gets
            return value
        try:
            return source.choose(ARRAY_SPOILERS)(source, value)
        except (IndexError, OverflowError, TypeError, ValueError):  # numpy has no such array
            return value
    if isinstance(value, list):
        at = source.below(len(value) + 1)
        kept = [spoiled(source, item) for item in value[at : at + 1]]
        return [*value[:at], *kept, *value[at + 1 :], *([None] if at == len(value) else [])]
    return source.choose([*EXTREMES, None, "x", 1.5, value + 1 if isinstance(value, int) else 0])


def decode(extension: Any, entry: str, data: bytes) -> Arguments:
    source = Source(data, extension)
    changes = max(0, source.byte() - 160) // 32  # none at all for most bytes
    arguments = ENTRIES[entry](source)
    for _ in range(changes):
        at = source.below(len(arguments))
        arguments[at] = spoiled(source, arguments[at])
    return arguments


def call(extension: Any, entry: str, arguments: Arguments) -> tuple[bool, bytes]:
    """Whether an entry point took its arguments, and all bytes that came back or why not.

    The extension answers bad values by ValueError and bad types by TypeError, and nothing else.
    """
    try:
        result = getattr(extension, entry)(*arguments)
    except (TypeError, ValueError) as error:
        return False, type(error).__name__.encode()
    outputs = arguments[-1] if result is None else result  # `out` is the last
    return True, all_bytes(outputs)


def all_bytes(value: Any) -> bytes:
    if isinstance(value, tuple | list):
        return b"".join(map(all_bytes, value))
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()


def run(extension: Any, entry: str, data: bytes) -> bool:
    """One input of the fuzzer: whether the entry point took it."""
    taken, _ = call(extension, entry, decode(extension, entry, data))
    return taken
