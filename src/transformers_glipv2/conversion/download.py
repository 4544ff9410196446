"""Large files from the Hub or from an address: resumed where they were cut off, checked, and whole or not there."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

_CHUNK = 1 << 24
# A compressed answer could not be resumed.
_HEADERS = {"Accept-Encoding": "identity"}


@dataclass(frozen=True)
class RemoteFile:
    """
    A file to download.

    Args:
        url: where it is.
        size: bytes, or `None` where the server does not say.
        sha256: the digest in hex or its first digits; empty when it is not known.
        is_on_hub: whether the token of the Hub may be sent.
    """

    url: str
    size: int | None
    sha256: str
    is_on_hub: bool = False


def find_on_hub(repo_id: str, filename: str, revision: str = "main") -> RemoteFile:
    """
    What the Hub says about a file: its size, and its SHA-256 where it is stored as a large file.

    Raises:
        ConnectionError: when the Hub cannot be reached or does not give the file.
    """
    url = hf_hub_url(repo_id, filename, revision=revision)
    try:
        metadata = get_hf_file_metadata(url)
    except Exception as error:
        raise _connection_error(url, error) from error
    etag = metadata.etag or ""
    # Other files have the SHA-1 of git.
    sha256 = etag if len(etag) == 64 else ""
    return RemoteFile(hf_hub_url(repo_id, filename, revision=metadata.commit_hash), metadata.size, sha256, True)


def find_at_url(url: str, sha256: str = "") -> RemoteFile:
    """
    A file at an http(s) address.

    Raises:
        ConnectionError: when the address cannot be reached.
    """
    try:
        metadata = get_hf_file_metadata(url, token=False)
    except Exception as error:
        raise _connection_error(url, error) from error
    return RemoteFile(url, metadata.size, sha256)


def download(remote: RemoteFile, path: Path) -> Path:
    """
    Downloads a file with a progress bar, goes on with what an earlier call left, and compares size and SHA-256.

    Args:
        remote: as `find_on_hub` or `find_at_url` gives it.
        path: where the file will be; what there is of it so far is beside it, as `.NAME.*.partial`.

    Returns:
        `path`.

    Raises:
        ConnectionError: when the server cannot be reached, or stops; what arrived is kept.
        ValueError: when the file is not the one that was announced; it is deleted.
        OSError: when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size == remote.size and sha256_of(path).startswith(remote.sha256):
        return path
    partial = _partial(remote, path)
    if remote.size is not None and partial.is_file() and partial.stat().st_size > remote.size:
        partial.unlink()
    headers = {**(build_hf_headers() if remote.is_on_hub else {}), **_HEADERS}
    with open(partial, "ab") as file:
        try:
            http_get(
                remote.url,
                file,
                resume_size=file.tell(),
                headers=headers,
                expected_size=remote.size,
                displayed_filename=path.name,
            )
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise _connection_error(remote.url, error) from error
    found = sha256_of(partial)
    if not found.startswith(remote.sha256):
        partial.unlink()
        raise ValueError(
            f"What {remote.url} gave has the SHA-256 {found}, where {remote.sha256} was expected. It was damaged on "
            "the way or is another file, and was deleted; run the same command again."
        )
    os.replace(partial, path)
    return path


def missing_bytes(remote: RemoteFile, path: Path) -> int:
    """How much of a file is still to be downloaded to `path`; 0 when the server does not say how large it is."""
    if remote.size is None:
        return 0
    there = (file.stat().st_size for file in (path, _partial(remote, path)) if file.is_file())
    return max(remote.size - max(there, default=0), 0)


def check_space(folder: Path, num_bytes: int, what: str) -> None:
    """
    Args:
        folder: an existing folder.
        num_bytes: how much will be written there.
        what: what needs the space, for the message.

    Raises:
        OSError: when the disk has less than that.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(
            f"{what} needs {num_bytes / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free. Free some space, "
            "or set GLIPV2_CACHE to a folder on another disk."
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _partial(remote: RemoteFile, path: Path) -> Path:
    """Named by content, so that a download never goes on with the beginning of another version."""
    version = hashlib.sha256(f"{remote.url} {remote.size} {remote.sha256}".encode()).hexdigest()[:12]
    return path.with_name(f".{path.name}.{version}.partial")


def _connection_error(url: str, error: Exception) -> ConnectionError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    return ConnectionError(f"{url} cannot be downloaded: {reason[:300].rstrip('.')}.")
