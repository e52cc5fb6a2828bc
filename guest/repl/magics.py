# SPDX-License-Identifier: Apache-2.0
"""Magics that differ from IPython's: those that would hide a failure, and those that need a screen.

A magic that fails ends the cell with an error: %pip with a status other than 0, %cd to what is no
directory, %%bash whose script fails. (IPython prints something and goes on.)
"""

from __future__ import annotations

import contextlib
import importlib
import io
import shlex
import subprocess
import sys
from typing import Any

from IPython.core.error import UsageError
from traitlets import Any as AnyTrait
from traitlets.config import Configurable

from . import plots


MAX_VISITED = 100


class InlineBackend(Configurable):
    """%config InlineBackend.figure_format and its relatives, which notebooks begin with."""

    figure_format = AnyTrait(config=True, help="'retina': twice the resolution")
    figure_formats = AnyTrait(config=True, help="the same, as a set")
    print_figure_kwargs = AnyTrait(config=True, help="not looked at")
    rc = AnyTrait(config=True, help="not looked at")
    close_figures = AnyTrait(config=True, help="not looked at")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.observe(self._on_format, names=["figure_format", "figure_formats"])

    def _on_format(self, change: Any) -> None:
        plots.set_scale(2.0 if "retina" in (change.new or ()) else 1.0)


def install(shell: Any, runner: Any) -> None:
    """Puts the magics into the shell."""
    manager = shell.magics_manager.magics
    original_cd, original_bash = manager["line"]["cd"], manager["cell"]["bash"]

    def cd(line: str) -> None:
        """Changes the directory, for good; %cd - goes back."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            original_cd(line)
        visited = shell.user_ns.get("_dh")
        if isinstance(visited, list):  # IPython notes each call, for good
            if len(visited) > 1 and str(visited[-1]) == str(visited[-2]):
                visited.pop()
            del visited[:-MAX_VISITED]
        text = said.getvalue()
        if text.startswith(("[Errno", "No matching")):
            raise UsageError(text.splitlines()[0])
        sys.stdout.write(text)

    def pip(line: str) -> None:
        """Runs pip of this Python; what it has installed can be imported at once."""
        command = f"{shlex.quote(sys.executable)} -m pip {line}"
        status = shell.run_command(command)
        importlib.invalidate_caches()
        runner.find_user_site()
        if status != 0:
            raise subprocess.CalledProcessError(status, f"pip {line}".strip())

    def script(line: str, cell: str) -> None:
        """Runs the cell as a script of bash. With options, IPython does it."""
        if line.strip():
            original_bash(line, cell)
        else:
            shell.run_script(cell)

    def debug(line: str) -> None:
        """Needs a terminal."""
        raise UsageError("%debug and %pdb need a terminal, and there is none here")

    shell.register_magic_function(cd, "line", "cd")
    shell.register_magic_function(pip, "line", "pip")
    shell.register_magic_function(script, "cell", "bash")
    shell.register_magic_function(script, "cell", "sh")
    shell.register_magic_function(debug, "line", "debug")
    shell.register_magic_function(debug, "line", "pdb")
    shell.configurables.append(InlineBackend(parent=shell))
