"""Pictures for a page: decoded, made small and written anew, so that nothing of a file but what
one sees of it gets there."""

from __future__ import annotations

import io
from typing import Any

from fastmpi.data.images import load_image

LOSSLESS_UP_TO = 160  # pixels of the longer side


def picture(source: Any, side: int) -> bytes | None:
    """PNG or JPEG of at most `side` pixels; None where the file is not there or is no picture."""
    try:
        image = load_image(source)
    except ValueError:
        return None
    image.thumbnail((side, side))
    file = io.BytesIO()
    if max(image.size) <= LOSSLESS_UP_TO:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=80)
    return file.getvalue()
