"""UCF-101 from its page: a download that goes on where it broke off, unpacked and then checked like any tree."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

VIDEOS = "https://www.crcv.ucf.edu/data/UCF101/UCF101.rar"
LISTS = "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip"
_UNRAR = (("unrar", "x", "-idq", "-o+"), ("bsdtar", "-xf"), ("7z", "x", "-y", "-bso0"))
_CHUNK = 2**20


def fetch(address: str, target: Path, *, tries: int = 5, wait_s: float = 3.0) -> Path:
    """Download a file; the part that is there already is not fetched again, unless the server's file has changed.

    Args:
        address: http, https or file.
        target: the file; `target.part` and `target.part.json` lie beside it until it is whole.
        tries: times that a connection may break off without a byte gained.
        wait_s: pause before the next try, seconds.

    Raises:
        ConnectionError: the server cannot be reached or broke off for good; the next call goes on.
    """
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    failures = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _fetch_on(address, part):
                break
            error: Exception | str = "the connection broke off"
        except (OSError, HTTPException) as raised:
            error = raised
        got = part.stat().st_size if part.is_file() else 0
        failures = 0 if got > before else failures + 1
        refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
        if refused or failures >= tries:
            raise ConnectionError(
                f"{address}: {error}; {got} bytes are kept in {part}, and the next call goes on from there, or give "
                "another address"
            )
        time.sleep(wait_s)
    part.replace(target)
    _state_file(part).unlink(missing_ok=True)
    return target


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .rar, .zip or .tar* file into a folder.

    Raises:
        ValueError: it is damaged or of another kind.
        RuntimeError: it is a .rar and no program that unpacks one is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if archive.suffix.lower() != ".rar":
        try:
            shutil.unpack_archive(archive, folder)
        except (shutil.ReadError, OSError, EOFError) as error:
            raise ValueError(
                f"{archive} cannot be unpacked ({error}); remove it, and it is downloaded again"
            ) from error
        return
    command = next((command for command in _UNRAR if shutil.which(command[0])), None)
    if command is None:
        raise RuntimeError(f"{archive}: install one of {', '.join(c[0] for c in _UNRAR)} to unpack it, and call again")
    done = subprocess.run([*command, str(archive.resolve())], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ValueError(
            f"{archive} cannot be unpacked by {command[0]}: {' '.join(reason)}; remove it if it is damaged"
        )


def download_ucf101(root: Path, *, videos: str = VIDEOS, lists: str = LISTS) -> None:
    """Fetch and unpack what `root` lacks: UCF-101/ (6.5 GB) and ucfTrainTestlist/."""
    for address, folder in ((lists, "ucfTrainTestlist"), (videos, "UCF-101")):
        if (root / folder).is_dir():
            continue
        archive = fetch(address, root / address.rsplit("/", 1)[-1])
        partial = root / f".{folder}.part"
        shutil.rmtree(partial, ignore_errors=True)
        unpack(archive, partial)
        inner = partial / folder
        if not inner.is_dir():
            raise ValueError(f"{archive} holds no folder {folder}/: is {address} the right address?")
        inner.rename(root / folder)
        shutil.rmtree(partial)
        archive.unlink()


def _fetch_on(address: str, part: Path) -> bool:
    """Append to the part until the connection ends; whether the file is whole."""
    state_file = _state_file(part)
    state = json.loads(state_file.read_text()) if state_file.is_file() and part.is_file() else {}
    have = part.stat().st_size if state.get("address") == address else 0
    request = urllib.request.Request(address)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if state.get("validator"):
            request.add_header("If-Range", state["validator"])
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have == state.get("total"):  # nothing is left to fetch
            return True
        raise
    with response:
        goes_on = response.status == 206 and have > 0
        have = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        state_file.write_text(json.dumps({"address": address, "validator": validator, "total": total}))
        with (
            part.open("ab" if goes_on else "wb") as file,
            tqdm(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True, mininterval=1) as bar,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or part.stat().st_size == total


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")
