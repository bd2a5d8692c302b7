"""Checkpoints that a killed run continues from, bit by bit.

    checkpoint-{step}/     an ordinary model folder: config, weights, tokenizer, image processor
        trainer_state.json what was done so far, and of which model, settings and rows
        state/             optimizer, adapter and rollout as safetensors, and rng for each process;
                           under fsdp the optimizer too, with an index

How much any process held can be seen in none of it, so another number may continue. The
state has a folder of its own because servers load every `*.safetensors` beside a config. A
checkpoint is written aside, flushed to disk and renamed, so one that can be seen is whole. Nothing
is pickled: neither torch's nor accelerate's own state files are read or written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastmpi.files import flush, flush_all, make_folder, removed_on_error

STATE_FILE = "trainer_state.json"
STATE_FOLDER = "state"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_ASIDE = re.compile(r"\.(checkpoint-\d+)\.(writing|old|removed)")
_SAMPLED_VALUES = 1024  # of each tensor, for the fingerprint


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [
        (int(match[1]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := _CHECKPOINT.fullmatch(path.name)) and (path / STATE_FILE).is_file()
    ]
    return [path for _, path in sorted(found)]


def find_checkpoint(output_dir: str | Path, resume: str | Path | bool | None) -> Path | None:
    """The checkpoint that `resume` means: None or False, none; "auto" or True, the newest of
    `output_dir` if there is one; a path, that one (ValueError if it is no checkpoint)."""
    if resume is None or resume is False:
        return None
    if resume is True or resume == "auto":
        found = checkpoints(output_dir)
        return found[-1] if found else None
    path = Path(resume)
    if not (path / STATE_FILE).is_file():
        raise ValueError(f"{path} is no checkpoint: it has no {STATE_FILE}")
    return path


@contextlib.contextmanager
def written_aside(
    output_dir: str | Path,
    step: int,
    *,
    is_main: bool = True,
    barrier: Callable[[], None] = lambda: None,
) -> Iterator[Path]:
    """A folder to fill, which becomes `checkpoint-{step}` when the block ends without an error.
    All processes enter together; `barrier` waits for them."""
    output_dir = Path(output_dir)
    aside = output_dir / f".checkpoint-{step}.writing"
    if is_main:
        make_folder(output_dir)
        _remove_leftovers(output_dir)
        (aside / STATE_FOLDER).mkdir(parents=True)
    barrier()
    with removed_on_error(aside):
        yield aside
        barrier()
        if is_main:
            flush_all(aside)
    if is_main:
        _move_into_place(aside, output_dir / f"checkpoint-{step}")
    barrier()


def prune(output_dir: str | Path, limit: int | None) -> None:
    """Remove all but the `limit` newest checkpoints. One that can be seen stays whole: it is
    renamed first."""
    if limit is not None:
        for path in checkpoints(output_dir)[:-limit]:
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.removed")))


def state_path(checkpoint: Path, name: str, rank: int = 0, world_size: int = 1) -> Path:
    """File of one part of the state, of one process."""
    part = "" if world_size == 1 else f"-{rank + 1:05d}-of-{world_size:05d}"
    return checkpoint / STATE_FOLDER / f"{name}{part}.safetensors"


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Named tensors as one safetensors file."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What `write_tensors` wrote; a missing or damaged file is a ValueError."""
    try:
        return dict(load_file(path))
    except (FileNotFoundError, SafetensorError) as error:
        raise ValueError(f"{path}: not readable as safetensors ({error})") from error


def write_part(
    checkpoint: Path, name: str, tensors: dict[str, Tensor], rank: int, world_size: int
) -> None:
    """This process's rows of each tensor; the first process writes the index, and what is whole."""
    write_tensors(state_path(checkpoint, name, rank, world_size), tensors)
    if rank == 0:
        text = json.dumps({"parts": world_size})
        _index(checkpoint, name).write_text(text + "\n", encoding="utf-8")


def read_parts(checkpoint: Path, name: str) -> Iterator[tuple[str, Tensor]]:
    """Names and whole tensors of one part of the state, one at a time: of its one file, or put
    together from those of `write_part`. ValueError for a missing or damaged file."""
    index, count = _index(checkpoint, name), 1
    if index.is_file():
        try:
            count = int(json.loads(index.read_text(encoding="utf-8"))["parts"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index}: not readable as JSON ({error})") from error
    paths = [state_path(checkpoint, name, rank, count) for rank in range(count)]
    with contextlib.ExitStack() as stack:
        files = []
        for path in paths:
            try:
                files.append(stack.enter_context(safe_open(path, "pt")))
            except (FileNotFoundError, SafetensorError) as error:
                raise ValueError(f"{path}: not readable as safetensors ({error})") from error
        held = [set(file.keys()) for file in files]
        for key in files[0].keys():  # noqa: SIM118, a file is no dict
            parts = [f.get_tensor(key) for f, keys in zip(files, held, strict=True) if key in keys]
            yield key, torch.cat(parts) if len(parts) > 1 else parts[0]


def _index(checkpoint: Path, name: str) -> Path:
    return checkpoint / STATE_FOLDER / f"{name}.index.json"


def write_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """`trainer_state.json`; floats survive exactly."""
    text = json.dumps(state, indent=1, sort_keys=True)
    (checkpoint / STATE_FILE).write_text(text + "\n", encoding="utf-8")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `write_state` wrote; a damaged file is a ValueError."""
    path = checkpoint / STATE_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of names, shapes and some values of each tensor: tells models and their weights apart
    without reading gigabytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, len(flat) // _SAMPLED_VALUES)].double().cpu().numpy()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def check_same_run(checkpoint: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """ValueError if a checkpoint belongs to another stage, model, data set or to other settings.
    Both dicts: {"stage", "model", "rows", "policies", "samples_per_step", "steps_per_window",
    "processes", "config": {...}}; settings that `expected` lacks are free, and so is the number of
    processes."""
    for key in _WHAT:
        if found.get(key) != expected[key]:
            raise ValueError(
                f"{checkpoint} is of another {_WHAT[key]}: it has {key} "
                f"{str(found.get(key))[:16]}, this run {str(expected[key])[:16]}"
            )
    for key, what in _SIZES.items():
        if found.get(key) != expected[key]:
            raise ValueError(
                f"{checkpoint} has {found.get(key)} {what} on {found.get('processes')} processes, "
                f"this run {expected[key]} on {expected['processes']}: per_device_train_batch_size "
                "* gradient_accumulation_steps * processes must stay the same, and so must "
                "steps_per_generation / gradient_accumulation_steps"
            )
    for key, value in expected["config"].items():
        if found["config"].get(key) != value:
            raise ValueError(
                f"{checkpoint} was made with {key} = {found['config'].get(key)!r}, this run has "
                f"{value!r}"
            )


_WHAT = {
    "stage": "stage",
    "model": "model",
    "rows": "data set",
    "policies": "set of policies",
}
_SIZES = {
    "samples_per_step": "samples a step",
    "steps_per_window": "steps for each window of responses",
}


def rng_state() -> dict[str, Tensor]:
    """State of the random generators of Python, numpy and torch, as tensors. Training draws from
    none of them; a reward function may."""
    version, internal, gauss = random.getstate()
    assert version == 3
    numpy_state: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    name, keys, position, has_gauss, cached = numpy_state
    assert name == "MT19937"
    state = {
        "python": torch.tensor(internal, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.append(keys.astype(np.int64), [position, has_gauss])),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Undo everything drawn since `rng_state`."""
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    *keys, position, has_gauss = state["numpy"].tolist()
    cached = state["numpy_gauss"].item()
    np.random.set_state(  # noqa: NPY002
        ("MT19937", np.array(keys, np.uint32), position, has_gauss, cached)
    )
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _remove_leftovers(output_dir: Path) -> None:
    """What a killed run left half-written; a checkpoint that it had moved away comes back."""
    for path in output_dir.glob(".checkpoint-*"):
        if not (match := _ASIDE.fullmatch(path.name)):
            continue
        target = path.with_name(match[1])
        if match[2] == "old" and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path)


def _move_into_place(aside: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    if target.exists():  # written again after resuming from an earlier checkpoint
        target.rename(old)
    aside.rename(target)
    flush(target.parent)
    if old.exists():
        shutil.rmtree(old)
