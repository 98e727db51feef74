"""A landing region as images: where each chunk of each image lies, and how bytes get there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.handoff.contract import KVForm

Bytes = NDArray[np.uint8]

_LINE = 64


class Region:
    """The images of ``form`` for ``tokens`` tokens, one after the other in ``data`` (empty: places only)."""

    def __init__(self, form: KVForm, data: Bytes, tokens: int) -> None:
        self.images = form.images
        sizes = [image.size(tokens) for image in self.images]
        starts = np.cumsum([0, *sizes])
        if data.nbytes not in {0, starts[-1]}:
            raise ValueError(f"a region of {data.nbytes} bytes cannot hold {starts[-1]}")
        self._data = data
        self._starts: list[int] = starts.tolist()
        self._aligned = data.ctypes.data % _LINE == 0
        self._tokens = tokens
        self._stream: Any = None

    def piece(self, index: int, token_start: int, tokens: int) -> Bytes:
        """The part of an image that holds these tokens, as a view of [outer, units, unit_bytes]."""
        image = self.images[index]
        whole = self._data[self._starts[index] : self._starts[index + 1]]
        first = token_start // image.unit_tokens
        place = whole.reshape(image.outer, image.units(self._tokens), image.unit_bytes)
        return place[:, first : first + image.units(tokens)]

    def dense(self, index: int, token_start: int, tokens: int) -> Bytes | None:
        """As :meth:`piece`, as one run of bytes; None where it is not one."""
        ((start, _, size), *more) = self.runs(index, token_start, tokens)
        return None if more else self._data[start : start + size]

    def runs(self, index: int, token_start: int, tokens: int) -> list[tuple[int, int, int]]:
        """(offset in the region, offset in the image's dense bytes, bytes) of each unbroken run."""
        image = self.images[index]
        whole, part = image.size(self._tokens) // image.outer, image.size(tokens) // image.outer
        first = self._starts[index] + token_start // image.unit_tokens * image.unit_bytes
        return [(first + row * whole, row * part, part) for row in range(image.outer)]

    def put(self, index: int, token_start: int, tokens: int, staged: Bytes) -> None:
        """Copies an image's dense bytes of these tokens into place; past the caches if in one run."""
        image = self.images[index]
        start = self._starts[index] + token_start // image.unit_tokens * image.unit_bytes
        if image.outer == 1 and self._aligned and start % _LINE == 0 and staged.nbytes % _LINE == 0:
            self._copy_past_caches(staged, self._data[start : start + staged.nbytes])
        else:
            place = self.piece(index, token_start, tokens)
            place[...] = staged.reshape(place.shape)

    def _copy_past_caches(self, staged: Bytes, place: Bytes) -> None:
        if self._stream is None:
            from diptych.handoff import kernels  # noqa: PLC0415  numba takes half a second to import

            self._stream = kernels.stream()
        self._stream(staged, place)
