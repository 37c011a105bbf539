"""Rules of Windows for files, applied to this process on Linux."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import filelock

from processing import explanation_table, feature_cache


def open_files() -> set[str]:
    """Real paths of the files that this process has open or mapped into memory."""
    descriptors = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    mapped = (line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    return {os.path.realpath(name) for name in descriptors if os.path.lexists(name)} | set(mapped)


def follow_windows_rules(monkeypatch) -> None:
    """Files that are open or mapped cannot be deleted, renamed or replaced, nor can their folders. `os.rename`
    replaces nothing. Folders cannot be opened, files opened for reading not synced. There is no `fcntl`."""
    real = {name: getattr(os, name) for name in ("unlink", "remove", "replace", "rename", "open", "fsync")}

    def guard(name):
        def guarded(*paths, **kwargs):
            for path in paths[:2]:
                file = os.path.realpath(path)
                if any(used == file or used.startswith(f"{file}{os.sep}") for used in open_files()):
                    raise PermissionError(errno.EACCES, "another process uses the file", os.fspath(path))
            if name == "rename" and os.path.exists(paths[1]):
                raise FileExistsError(errno.EEXIST, "the file exists", os.fspath(paths[1]))
            return real[name](*paths, **kwargs)

        return guarded

    def open_no_folder(path, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "a folder cannot be opened", os.fspath(path))
        return real["open"](path, *args, **kwargs)

    def sync_written(descriptor):
        descriptor = getattr(descriptor, "fileno", lambda: descriptor)()
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "the file is open for reading only")
        real["fsync"](descriptor)

    for name in ("unlink", "remove", "replace", "rename"):
        monkeypatch.setattr(os, name, guard(name))
    monkeypatch.setattr(os, "open", open_no_folder)
    monkeypatch.setattr(os, "fsync", sync_written)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # as there
    monkeypatch.setattr(feature_cache, "fcntl", None)
    monkeypatch.setattr(explanation_table, "FileLock", filelock.SoftFileLock)
