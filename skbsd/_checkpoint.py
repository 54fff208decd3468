"""The file that a fit writes after every epoch, and resumes from."""

import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import _files, _versions
from ._identity import UnknownIdentityError, digest

logger = logging.getLogger("skbsd")

# Descriptions of a mismatch in each part of a file's identity, for messages.
_PARTS = {
    "parameters": "other parameters",
    "data": "other data",
    "start": "a model in another state",
}


class CheckpointError(OSError):
    """A checkpoint cannot be written, read or resumed from."""


class CheckpointFile:
    """The file of one call in a folder of checkpoints.

    Parameters
    ----------
    folder : path-like
        Created if it does not exist.
    identity : dict of str to object
        Values that identify the call: "parameters", "data" and "start".
    n_epochs : int, default=None
        Number of epochs of the call, if a call with the same identity and fewer epochs
        is its beginning.

    Attributes
    ----------
    path : Path
        Its name contains a digest of the identity, so that different calls use
        different files.
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
                f"data, but {error} Omit it, or pass checkpoint=None."
            ) from error
        self._n_epochs = n_epochs
        self._stem = digest(self._identity)
        length = "" if n_epochs is None else f"-{n_epochs}"
        name = f"{self._stem}{length}.safetensors"
        self.path = Path(folder).expanduser() / name
        self._try()

    def _try(self) -> None:
        """Check that the folder is writable, before an epoch is trained."""
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
                f"checkpoint={str(folder)!r} is not a writable folder: "
                f"{error}. Nothing was trained; choose another folder."
            ) from error

    def read(self) -> dict[str, Any] | None:
        """Return the state that was written last; None if the file does not exist.

        Raises
        ------
        CheckpointError
            If the file is damaged, of another kind, of another version or of another
            call. It is not changed.
        """
        return self._read(self.path)

    def read_beginning(self) -> tuple[dict[str, Any], Path] | None:
        """Return the state of the longest shorter call that this one can continue.

        Returns
        -------
        (state, path) or None
            None if no such call exists.

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
            if state is not None:  # None if the file was deleted meanwhile
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
                "fit from the beginning."
            ) from error
        if header.get("kind") != "checkpoint":
            raise CheckpointError(
                f"{path} is not a checkpoint; its kind is "
                f"{header.get('kind', 'unknown')!r}. Move it elsewhere, or choose "
                "another folder."
            )
        versions, here = header["versions"], _relevant_versions()
        if versions != here:
            raise CheckpointError(
                f"the checkpoint {path} was written with {_listed(versions)}; this is "
                f"{_listed(here)}, which may compute different numbers. Install "
                "those versions to resume, or delete the file to start this fit from "
                "the beginning."
            )
        for part, expected in self._identity.items():
            if header["identity"].get(part) != expected:
                raise CheckpointError(
                    f"the checkpoint {path} belongs to a call with "
                    f"{_PARTS[part]}: it was renamed or copied. Delete it, or choose "
                    "another folder."
                )
        return header["state"]

    def write(self, state: dict[str, Any], epoch: int) -> None:
        """Replace the file by one with a new state.

        Parameters
        ----------
        state : dict
            Plain data and tensors, nested.
        epoch : int
            Number of finished epochs, for messages.

        Raises
        ------
        CheckpointError
            If the file cannot be written. The previous file is unchanged.
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
                "A file that was written before is intact. Once the folder is writable "
                "again, call fit to resume from it."
            ) from error


def announce(text: str, verbose: int, sink: Callable[[str], None] = print) -> None:
    """Report that a fit was resumed: in the log and, if `verbose`, on the screen."""
    logger.info(text)
    if verbose:
        sink(text)


def _relevant_versions() -> dict[str, str]:
    """Return the versions of the packages that affect numerical results."""
    versions = _versions.current()
    return {name: versions[name] for name in ("skbsd", "torch", "numpy")}


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
