"""The fuzzer's inputs: one file per entry point, one input per line, in hexadecimal.

usage: corpus.py unpack ENTRY FOLDER | pack ENTRY FOLDER   (a folder as libFuzzer has it)
"""

from __future__ import annotations

import sys
from hashlib import sha1
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def inputs(entry: str) -> list[bytes]:
    file = CORPUS / f"{entry}.txt"
    return [bytes.fromhex(line) for line in file.read_text().splitlines()] if file.exists() else []


def unpack(entry: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs(entry):
        (folder / sha1(data).hexdigest()).write_bytes(data)


def pack(entry: str, folder: Path) -> None:
    found = sorted({file.read_bytes() for file in folder.iterdir()}, key=lambda d: (len(d), d))
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{entry}.txt").write_text("".join(data.hex() + "\n" for data in found))


if __name__ == "__main__":
    {"unpack": unpack, "pack": pack}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
