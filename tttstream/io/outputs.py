"""Output files that are complete or absent: written under a temporary name, renamed when they are finished."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import OutputError, TTTStreamError
from tttstream.io.claims import Claim, beside
from tttstream.io.names import clean

_REASONS = {
    errno.ENOENT: "that folder is not there and cannot be made; choose another folder",
    errno.ENOSPC: "the disk is full; free some space, or write to another disk",
    errno.EDQUOT: "the disk quota is used up; free some space, or write to another disk",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EROFS: "that disk is read-only; choose another folder",
    errno.ENOTDIR: "a part of that path is a file, not a folder; choose another folder",
    errno.EEXIST: "there is a file of that name, not a folder; choose another folder",
    errno.EISDIR: "there is a folder of that name; remove it, or choose another folder",
    errno.ENAMETOOLONG: "that name is too long for the file system; choose a shorter one",
    errno.ELOOP: "symbolic links lead in a circle there; choose another folder",
}


@contextmanager
def saving(path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert system errors of a file that is being written to an OutputError that names the file."""
    try:
        yield
    except TTTStreamError:
        raise
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, str(error))
        raise OutputError(f"cannot write {os.fspath(path)}: {reason}") from error


def text_of(value: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON, in which names of files that are no valid text have the form of `shown`."""
    return json.dumps(clean(value), indent=indent)


File = TypeVar("File", bound="OutputFile")


class OutputFile:
    """A file written piece by piece. `close()` finishes and renames it, `discard()` removes it.

    Until then a second run that writes it raises OutputError.

    Several files that belong together: `finish()` all of them, then `publish()` all of them. As a context manager it
    closes at the end, and discards after an error. claim: False for one of many in a locked folder.
    """

    def __init__(self, path: str | os.PathLike[str], *, claim: bool = True) -> None:
        self.path = Path(path)
        self.part = beside(self.path, ".part")
        self._finished = self._published = False
        with saving(self.path):
            self._claim = Claim.on_file(self.path) if claim else None
            try:
                self._begin()
            except BaseException:
                self._remove()
                self._release()
                raise

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()

    def _begin(self) -> None:
        """Open the file under its temporary name."""

    def _end(self) -> None:
        """Write the rest, and close the file handle."""

    def _abandon(self) -> None:
        """Close the file handle after an error. Must not raise for a file that is broken or closed."""

    def _place(self) -> None:
        """Rename the finished file."""
        os.replace(self.part, self.path)

    def _remove(self) -> None:
        """Remove the file under its temporary name, if it exists."""
        self.part.unlink(missing_ok=True)

    def finish(self) -> None:
        """Complete the file under its temporary name."""
        if not self._finished:
            with saving(self.path):
                self._end()
            self._finished = True

    def publish(self) -> None:
        """Rename the finished file; it replaces an earlier file with its name."""
        with saving(self.path):
            self._place()
        self._published = True
        self._release()

    def close(self) -> None:
        """Finish and publish; a file that cannot be finished is discarded."""
        try:
            self.finish()
            self.publish()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove the unpublished file."""
        if not self._finished:
            self._abandon()
            self._finished = True
        if not self._published:  # otherwise the file with this name belongs to another run
            self._remove()
            self._release()

    def __enter__(self: File) -> File:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class ByteFile(OutputFile):
    """Bytes, written piece by piece."""

    def _begin(self) -> None:
        self._file = open(self.part, "wb")  # noqa: SIM115

    def append(self, data: bytes) -> None:
        """Append bytes."""
        with saving(self.path):
            self._file.write(data)

    def _end(self) -> None:
        self._file.close()

    def _abandon(self) -> None:
        with suppress(OSError):  # a full disk: there is nothing to save
            self._file.close()


class TextFile(ByteFile):
    """Text, UTF-8; `write_json` puts one value on one line."""

    def write(self, text: str) -> None:
        """Append text."""
        self.append(text.encode())

    def write_json(self, value: Mapping[str, Any]) -> None:
        """Append one line of JSON."""
        self.write(text_of(value) + "\n")


def write_report(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write a file of indented JSON."""
    with TextFile(path) as file:
        file.write(text_of(values, indent=2) + "\n")


class ArrayFile(ByteFile):
    """A .npy file [n, width] float32 that grows row by row: constant memory, `np.load` reads it as any other."""

    def __init__(self, path: str | os.PathLike[str], width: int) -> None:
        self.width, self.rows = width, 0
        super().__init__(path)

    def _begin(self) -> None:
        super()._begin()
        try:
            self._write_header()
        except BaseException:
            self._abandon()
            raise

    def _write_header(self) -> None:
        # numpy pads the header so that the first axis can grow without moving the data.
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.width)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, row: NDArray[np.float32]) -> None:
        """Append one row [width]."""
        self.append(np.ascontiguousarray(row, dtype="<f4").reshape(self.width).tobytes())
        self.rows += 1

    def _end(self) -> None:
        self._file.seek(0)
        self._write_header()
        super()._end()


class OutputFolder:
    """A folder for results, locked for this run until `release()`. Raises OutputError if another run has it.

    `discard()` also releases it, and removes the folders that this object made if they are empty. claim: False does not
    lock it.
    """

    def __init__(self, path: str | os.PathLike[str], *, claim: bool = True) -> None:
        self.path = Path(path)
        self._claim: Claim | None = None
        self._made: list[Path] = []
        try:
            with saving(self.path):
                self._made = [folder for folder in (self.path, *self.path.parents) if not os.path.exists(folder)]
                while self._claim is None:
                    self.path.mkdir(parents=True, exist_ok=True)
                    if not claim:
                        break
                    with suppress(FileNotFoundError):  # the run that made it has just removed it
                        self._claim = Claim.on_folder(self.path)
        except OutputError:
            self.discard()
            raise

    def release(self) -> None:
        """Release the folder for other runs. Safe to call twice."""
        if self._claim is not None:
            self._claim.release()

    def discard(self) -> None:
        """Release the folder, and remove the folders that the constructor made."""
        self.release()
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return  # not empty, or never created

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()
