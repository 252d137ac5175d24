"""Downloads from a repository on the Hugging Face Hub: one commit, checked by its hashes, with errors that say why."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from minmax_entropy.hub.names import CONFIG_NAME
from minmax_entropy.hub.weights import INDEX_NAME, WEIGHTS_NAME, shard_names

_logger = logging.getLogger(__name__)

CHUNK = 2**20  # bytes read at a time for a hash


@dataclasses.dataclass(frozen=True)
class Repository:
    """Model repository; cache, token and offline mode are those of `huggingface_hub` unless they are given.

    Args:
        name: "ORG/NAME".
        revision: branch, tag or commit; the main branch by default.
        cache_dir, token, force_download, local_files_only: as in `huggingface_hub.hf_hub_download`.
    """

    name: str
    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    force_download: bool = False
    local_files_only: bool = False

    def config(self) -> Path:
        """Return the local path of `config.json`, whose folder has the name of the commit.

        Raises:
            FileNotFoundError: repository, revision or file do not exist, or are not in the cache while offline.
            ConnectionError: the server can't be reached, or the connection was lost.
            ValueError: an invalid name, or a file whose hash differs from the server's.
        """
        if not self._is_offline and not self._cached(CONFIG_NAME, self.revision):
            revision = self.revision or huggingface_hub.constants.DEFAULT_REVISION
            try:  # fails at once without a server; `hf_hub_download` tries many times
                huggingface_hub.HfApi(token=self.token).model_info(self.name, revision=revision)
            except HfHubHTTPError as error:
                _logger.debug("no description of %s: %s", self, error)
            except Exception as error:
                raise self._explained(error, CONFIG_NAME) from error
        return self._file(CONFIG_NAME, self.revision)

    def weights(self, config: Path) -> list[Path]:
        """Return the local paths of the safetensors files, from the same commit as `config`.

        Raises:
            FileNotFoundError, ConnectionError, ValueError: as for `config`; also an index that names other files.
        """
        commit = config.parent.name
        try:
            return [self._file(WEIGHTS_NAME, commit)]
        except FileNotFoundError as error:
            single = error
        try:
            index = self._file(INDEX_NAME, commit)
        except FileNotFoundError:
            raise single from None
        return [self._file(name, commit) for name in shard_names(index)]

    @property
    def _is_offline(self) -> bool:
        return self.local_files_only or huggingface_hub.constants.HF_HUB_OFFLINE

    def _cached(self, filename: str, revision: str | None) -> Path | None:
        try:
            path = huggingface_hub.try_to_load_from_cache(
                self.name, filename, cache_dir=self.cache_dir, revision=revision
            )
        except HFValidationError as error:
            raise self._explained(error, filename) from error
        return Path(path) if isinstance(path, str) else None

    def _file(self, filename: str, revision: str | None) -> Path:
        known = self._cached(filename, revision)
        try:
            path = huggingface_hub.hf_hub_download(
                self.name,
                filename,
                revision=revision,
                cache_dir=self.cache_dir,
                token=self.token,
                force_download=self.force_download,
                local_files_only=self.local_files_only,
                library_name="minmax_entropy",
            )
        except Exception as error:
            raise self._explained(error, filename) from error
        path = Path(path)
        if self.force_download or known != path:
            self._check_hash(path, filename)
        return path

    def _check_hash(self, path: Path, filename: str) -> None:
        """Compare the hash of a new file with its name in the cache, which is its hash, and with the server's list."""
        blob = path.resolve()
        expected = {blob.name} if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name) else set()
        try:
            api = huggingface_hub.HfApi(token=self.token)
            listed = api.get_paths_info(self.name, [filename], revision=path.parent.name)
        except Exception as error:  # a mirror may not have a list of files
            _logger.debug("no list of files of %s: %s", self.name, error)
            listed = []
        for item in listed:
            lfs = getattr(item, "lfs", None)
            expected.add(lfs.sha256 if lfs else item.blob_id)
        wrong = [each for each in expected if each != _hash(blob, is_git=len(each) == 40)]
        if wrong:
            path.unlink()
            blob.unlink(missing_ok=True)
            raise ValueError(
                f"{filename} of {self} does not have the hash {wrong[0]}: it was damaged on its way or on the server; "
                "it was taken out of the cache, load again"
            )

    def _explained(self, error: Exception, filename: str) -> Exception:
        """Turn an error of the client into one of Python's that says what was asked for, where, and what to do."""
        endpoint = huggingface_hub.constants.ENDPOINT
        if isinstance(error, HFValidationError):
            return ValueError(f"{self.name!r} is not the name of a repository, ORG/NAME: {error}")
        if isinstance(error, GatedRepoError):
            return FileNotFoundError(f"{self} at {endpoint} is gated: ask for access on its page, then `hf auth login`")
        if isinstance(error, RevisionNotFoundError):
            return FileNotFoundError(f"{self} at {endpoint}: there is no revision {self.revision!r}")
        if isinstance(error, RepositoryNotFoundError):
            return FileNotFoundError(
                f"no repository {self} at {endpoint}, or no {filename} in it; a private one asks for `hf auth login`"
            )
        if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            if self._is_offline:
                return FileNotFoundError(f"{filename} of {self} is not in the cache, and downloads are off (offline)")
            return ConnectionError(
                f"{endpoint} can't be reached, and {filename} of {self} is not in the cache: {error}"
            )
        if isinstance(error, EntryNotFoundError):
            return FileNotFoundError(f"{self} at {endpoint} has no {filename}")
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            return error  # of the disk
        return ConnectionError(f"{filename} of {self} can't be had from {endpoint}: {error}")

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def _hash(path: Path, is_git: bool) -> str:
    """Return the SHA-256 of a file, or git's SHA-1 of its blob."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size) if is_git else hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
