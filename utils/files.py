"""Files that are either whole or absent."""

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

_TEMPORARY = ".tmp"


@contextmanager
def atomic_path(path):
    """Yields a temporary path beside ``path`` that replaces it when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent
    )
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def atomic_folder(path):
    """Yields a folder that becomes ``path``, absent or empty before, when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        folder = Path(temporary) / path.name
        folder.mkdir()
        yield folder
        os.replace(folder, path)


def is_temporary(path):
    """Whether a file is left over from an atomic write of a killed process."""
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY)


def remove_temporary(folder):
    """Removes the temporary files that killed processes left below a folder."""
    for path in filter(is_temporary, Path(folder).rglob("*")):
        path.unlink()


def write_bytes(path, data):
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path, text):
    write_bytes(path, text.encode())


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256(paths):
    """Hex digest of the given files, concatenated; they are read again only after a change."""
    stats = [(str(path), Path(path).stat()) for path in paths]
    return _sha256(tuple((path, s.st_ino, s.st_size, s.st_mtime_ns) for path, s in stats))


@lru_cache(maxsize=1024)
def _sha256(files):
    digest = hashlib.sha256()
    for path, *_ in files:
        with Path(path).open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)  # continues the one digest
    return digest.hexdigest()
