"""The file that a fit leaves after every epoch, and goes on from."""

import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import _files, _versions
from ._identity import UnknownIdentityError, digest

logger = logging.getLogger("skbsd")

# Where the two parts of a file's identity come from, for messages.
_PARTS = {
    "parameters": "other parameters",
    "data": "other data",
    "start": "a model in another state",
}


class CheckpointError(OSError):
    """A checkpoint that cannot be written, read or gone on from."""


class CheckpointFile:
    """One call's file in a folder of checkpoints.

    Parameters
    ----------
    folder : path-like
        Is made where it is missing.
    identity : dict of str to object
        What tells the call from others: "parameters", "data" and "start".
    n_epochs : int, default=None
        How many epochs the call is for, where a call of the same identity for fewer is
        its beginning.

    Attributes
    ----------
    path : Path
        Named by the digest of the identity, so that calls do not meet.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: dict[str, Any],
        n_epochs: int | None = None,
    ):
        try:
            self._identity = {name: digest(part) for name, part in identity.items()}
        except UnknownIdentityError as error:
            raise CheckpointError(
                f"checkpoint={str(folder)!r} names files by a digest of parameters and "
                f"data, but {error} Leave it out, or pass checkpoint=None."
            ) from error
        self._n_epochs = n_epochs
        self._stem = digest(self._identity)
        length = "" if n_epochs is None else f"-{n_epochs}"
        name = f"{self._stem}{length}.safetensors"
        self.path = Path(folder).expanduser() / name
        self._try()

    def _try(self) -> None:
        """Find out now, and not after an epoch, whether the folder can be used."""
        folder = self.path.parent
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(
                f"checkpoint={str(folder)!r} is a file; expected a folder. Nothing was "
                "trained."
            )
        trial = folder / f".{self.path.stem}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trial.write_bytes(b"")
            trial.unlink()
            _files.remove_leftovers(self.path)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint={str(folder)!r} is not a folder that can be written to: "
                f"{error}. Nothing was trained; name another folder."
            ) from error

    def read(self) -> dict[str, Any] | None:
        """Return the state that was written last; None where there is none.

        Raises
        ------
        CheckpointError
            For a file that is damaged, foreign, of another version or of another call.
            It is left as it is.
        """
        return self._read(self.path)

    def read_beginning(self) -> tuple[dict[str, Any], Path] | None:
        """Return the state of the longest call that is the beginning of this one.

        Returns
        -------
        (state, path) or None
            None where there is no such call.

        Raises
        ------
        CheckpointError
            As in `read`.
        """
        if self._n_epochs is None:
            return None
        lengths = []
        for name in os.listdir(self.path.parent):
            stem, _, length = name.removesuffix(self.path.suffix).rpartition("-")
            if stem == self._stem and length.isdigit():
                lengths.append(int(length))
        for n_epochs in sorted(lengths, reverse=True):
            if n_epochs >= self._n_epochs:
                continue
            path = self.path.with_stem(f"{self._stem}-{n_epochs}")
            state = self._read(path)
            if state is not None:  # nobody has deleted it meanwhile
                return state, path
        return None

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            header, _ = _files.read(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint cannot be read: {error} Delete the file to start this "
                "fit afresh."
            ) from error
        if header.get("kind") != "checkpoint":
            raise CheckpointError(
                f"{path} is no checkpoint; it holds a "
                f"{header.get('kind', 'file of another kind')}. Move it elsewhere, or "
                "name another folder."
            )
        versions, here = header["versions"], _relevant_versions()
        if versions != here:
            raise CheckpointError(
                f"the checkpoint {path} was written with {_listed(versions)}; "
                f"here are {_listed(here)}, which may compute other numbers. Go on "
                "with those versions, or delete the file to start this fit afresh."
            )
        for part, expected in self._identity.items():
            if header["identity"].get(part) != expected:
                raise CheckpointError(
                    f"the checkpoint {path} belongs to a call with "
                    f"{_PARTS[part]}: it was renamed or copied. Delete it, or name "
                    "another folder."
                )
        return header["state"]

    def write(self, state: dict[str, Any], epoch: int) -> None:
        """Write a state in the place of the last one.

        Parameters
        ----------
        state : dict
            Plain data and tensors, nested.
        epoch : int
            How many epochs are finished, for messages.

        Raises
        ------
        CheckpointError
            If it cannot be written; the last file is as it was.
        """
        header = {
            "kind": "checkpoint",
            "versions": _relevant_versions(),
            "identity": self._identity,
            "state": state,
        }
        try:
            _files.write_atomically(self.path, {}, header)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint {self.path} could not be written after epoch {epoch}: "
                f"{error}. The model in memory is that of this epoch and can be used. "
                "A file that was written before is intact: once the folder can be "
                "written to, call fit again to continue from it."
            ) from error


def announce(text: str, verbose: int, sink: Callable[[str], None] = print) -> None:
    """Say that a fit goes on: in the log, and on the screen where one looks there."""
    logger.info(text)
    if verbose:
        sink(text)


def _relevant_versions() -> dict[str, str]:
    """Return the versions that the numbers depend on."""
    versions = _versions.current()
    return {name: versions[name] for name in ("skbsd", "torch", "numpy")}


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
