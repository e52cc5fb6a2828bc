"""Python imports this at every start, in virtual environments too.

When pip fails to get a package and the sandbox has no network, say so: pip itself only says that
no version was found.
"""

import sys


def _watch_pip() -> None:
    import os

    argv = sys.orig_argv[1:]
    if not {"install", "download", "wheel", "index", "search"}.intersection(argv[1:]):
        return
    if [name for name in os.listdir("/sys/class/net") if name != "lo"]:
        return
    if os.path.exists("/run/podflare/egress-env.sh"):  # this sandbox has egress
        return
    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return
    original = sys.exit

    def exit_with_notice(code=None, /):
        if code:
            sys.stdout.flush()
            print(
                "podflare: this sandbox has no network, so pip cannot download packages. Use what"
                " is installed (pip list), or upload a wheel into the sandbox and run:"
                " pip install --no-index ./NAME.whl",
                file=sys.stderr,
            )
        original(code)

    sys.exit = exit_with_notice


# Cheap for everybody else: one look at the command line.
if any(word.rpartition("/")[2].startswith("pip") for word in sys.orig_argv[1:4]):
    try:
        _watch_pip()
    except Exception:  # a notice must never be the reason that Python does not start
        pass
