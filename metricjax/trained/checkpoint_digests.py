"""Whether a checkpoint is still as it was written: sizes and digests of its files, kept beside it.

Orbax has checksums of its indices, but not of arrays: a flipped bit would load as another weight. So for each folder
RUN/checkpoints/STEP there is RUN/digests/STEP.json, written when the checkpoint is complete. A checkpoint without one
was interrupted at that moment, and is passed over for an earlier one. Where none of a run's checkpoints has one, the
run is of an older version, or ended right after its first checkpoint, and is taken as it is.
"""

import hashlib
import pathlib
import sys

from metricjax.ground import json_files

__all__ = ["CHECKPOINTS", "DAMAGED", "DIGESTS", "checked", "damage", "set_damaged_aside", "steps", "write"]

CHECKPOINTS, DIGESTS, DAMAGED = "checkpoints", "digests", "damaged"
MISSING = "it has no digest: it was interrupted before it was complete"


def steps(run: pathlib.Path) -> list[int]:
    """The steps of all checkpoints there are, whole or not, the latest first."""
    folders = (run / CHECKPOINTS).glob("[0-9]*")
    return sorted((int(folder.name) for folder in folders if folder.name.isdecimal()), reverse=True)


def write(run: pathlib.Path, step: int) -> None:
    """Note what the files of a checkpoint hold; forget those of checkpoints that are gone."""
    folder, kept = run / CHECKPOINTS / str(step), run / DIGESTS
    files = {path.relative_to(folder).as_posix(): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    kept.mkdir(exist_ok=True)
    json_files.write(kept / f"{step}.json", {"files": files})
    there = steps(run)
    for path in kept.glob("[0-9]*.json"):
        if path.stem.isdecimal() and int(path.stem) not in there:
            path.unlink(missing_ok=True)


def damage(run: pathlib.Path, step: int) -> str | None:
    """What is wrong with a checkpoint, in words; None where it is whole."""
    folder, noted = run / CHECKPOINTS / str(step), run / DIGESTS / f"{step}.json"
    if not noted.is_file():
        return MISSING
    try:
        files = json_files.read(noted).get("files")
        if not isinstance(files, dict) or not files:
            return f"{noted} is damaged: it names no files"
        for name, digest in files.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _digest(folder / name) != digest:
                return f"{name} is not as it was written"
    except (ValueError, OSError) as error:
        return str(error)
    return None


def checked(run: pathlib.Path) -> tuple[list[int], dict[int, str]]:
    """Steps whose checkpoints are whole, the latest first, and what is wrong with the others."""
    found = {step: damage(run, step) for step in steps(run)}
    if found and all(why is MISSING for why in found.values()):
        print(f"{run}: its checkpoints have no digests, so that damage to them is not noticed", file=sys.stderr)
        return list(found), {}
    wrong = {step: why for step, why in found.items() if why is not None}
    whole = [step for step in found if step not in wrong]
    if wrong and not whole:
        each = "; ".join(f"{step}: {why}" for step, why in wrong.items())
        raise ValueError(f"{run} holds no whole checkpoint ({each})")
    for step, why in wrong.items():
        print(f"{run}: checkpoint {step} is passed over: {why}", file=sys.stderr)
    return whole, wrong


def set_damaged_aside(run: pathlib.Path) -> None:
    """Move checkpoints that are not whole out of the way of a run that goes on from an earlier one."""
    for step in checked(run)[1]:
        aside = run / DAMAGED / str(step)
        for number in range(1, 1000):
            if not aside.exists():
                break
            aside = run / DAMAGED / f"{step}.{number}"
        aside.parent.mkdir(exist_ok=True)
        (run / CHECKPOINTS / str(step)).rename(aside)
        (run / DIGESTS / f"{step}.json").unlink(missing_ok=True)
        print(f"{run}: checkpoint {step} is moved to {aside}", file=sys.stderr)


def _digest(path: pathlib.Path) -> list:
    with open(path, "rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
