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

    Attributes
    ----------
    path : Path
        Named by the digest of the identity, so that calls do not meet.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: dict[str, Any]):
        try:
            self._identity = {name: digest(part) for name, part in identity.items()}
        except UnknownIdentityError as error:
            raise CheckpointError(
                f"checkpoint={str(folder)!r} names files by a digest of parameters and "
                f"data, but {error} Leave it out, or pass checkpoint=None."
            ) from error
        name = f"{digest(self._identity)}.safetensors"
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
                f"checkpoint={str(folder)!r} is no folder that can be written to: "
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
        try:
            header, _ = _files.read(self.path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint cannot be read: {error} Delete the file to start this "
                "fit afresh."
            ) from error
        if header.get("kind") != "checkpoint":
            raise CheckpointError(
                f"{self.path} is no checkpoint; it holds a "
                f"{header.get('kind', 'file of another kind')}. Move it elsewhere, or "
                "name another folder."
            )
        versions, here = header["versions"], _relevant_versions()
        if versions != here:
            raise CheckpointError(
                f"the checkpoint {self.path} was written with {_listed(versions)}; "
                f"here are {_listed(here)}, which may compute other numbers. Go on "
                "with those versions, or delete the file to start this fit afresh."
            )
        for part, expected in self._identity.items():
            if header["identity"].get(part) != expected:
                raise CheckpointError(
                    f"the checkpoint {self.path} belongs to a call with "
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
