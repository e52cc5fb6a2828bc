# SPDX-License-Identifier: Apache-2.0
"""Start of the persistent Python interpreter of a sandbox.

The agent starts this file as `python3 -u repl.py`, with fd 1 and 2 being pipes that it reads and the
number of the control socket in REPL_CTL. The module that Python made for this file, `__main__`,
becomes the namespace of the user's code; everything of ours lives in the package `_podflare_repl`
(the files beside this one), so that no name of ours can be in the way of one of theirs.
"""

import os
import sys
import types

_package = types.ModuleType("_podflare_repl", "The interpreter's own modules.")
_package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
sys.modules[_package.__name__] = _package

from _podflare_repl.runner import main  # noqa: E402  (the package must exist first)

main(sys.modules["__main__"])
