# SPDX-License-Identifier: Apache-2.0
"""Directories that cannot be read to their end: in an agent with this library loaded, readdir() fails in
those that are named so, behind some entries, as it does on a disk that is broken."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

NAME = "broken"  # of such a directory
ENTRIES = 5  # that are read before it fails, "." and ".." included

SOURCE = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int fails(DIR *d)
{
	static DIR *last;
	static int n;
	char link[64], path[4096];
	ssize_t len;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd(d));
	len = readlink(link, path, sizeof(path) - 1);
	path[len < 0 ? 0 : len] = '\0';
	if (!strrchr(path, '/') || strcmp(strrchr(path, '/') + 1, "NAME") != 0)
		return 0;
	n = d == last ? n + 1 : 1;
	last = d;
	if (n <= ENTRIES)
		return 0;
	last = NULL;
	errno = EIO;
	return 1;
}

struct dirent *readdir(DIR *d)
{
	struct dirent *(*next)(DIR *) = dlsym(RTLD_NEXT, "readdir");
	return fails(d) ? NULL : next(d);
}

struct dirent64 *readdir64(DIR *d)
{
	struct dirent64 *(*next)(DIR *) = dlsym(RTLD_NEXT, "readdir64");
	return fails(d) ? NULL : next(d);
}
"""


def load(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that are started from now on have it."""
    source, library = directory / "readdir.c", directory / "readdir.so"
    source.write_text(SOURCE.replace("NAME", NAME).replace("ENTRIES", str(ENTRIES)))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    asan = f"{os.environ.get('ASAN_OPTIONS', '')}:verify_asan_link_order=0"
    monkeypatch.setenv("ASAN_OPTIONS", asan)


def make(directory: Path) -> Path:
    """Such a directory, with more in it than is read."""
    place = directory / NAME
    place.mkdir()
    for n in range(20):
        (place / f"f{n}").write_text("x")
    return place
