# SPDX-License-Identifier: Apache-2.0
"""What code in a Podflare sandbox can know, and do, about forks of its sandbox.

A fork copies the running machine: variables, files, processes. Random numbers of Python, numpy and
OpenSSL are seeded anew in the copy. For what else must not be the same in two sandboxes:

    import podflare

    @podflare.on_fork
    def renew(generation):
        my_generator.seed()

Programs other than the Python session put an executable file into /etc/podflare/on-fork.d.
"""

import sys

__all__ = ["generation", "on_fork"]

_GENERATION = "/run/podflare/fork-generation"


def generation():
    """How many forks lie between this sandbox and the template from which the first one was made."""
    try:
        with open(_GENERATION, encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        return 0


def on_fork(function):
    """Has function(generation) called in every copy of this sandbox, before anything else of it runs
    there. In the order of registration; if one raises, that copy is given up. A running cell goes on
    afterwards. Returns the function, so it can be used as a decorator."""
    if not callable(function):
        raise TypeError(f"on_fork() needs a function, not {type(function).__name__}")
    renew = sys.modules.get("_podflare_repl.renew")
    if renew is None or not renew.register(function):
        raise RuntimeError(
            "podflare.on_fork() works in the sandbox's Python session only; for other programs, put"
            " an executable file into /etc/podflare/on-fork.d"
        )
    return function
