#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Starts the system, runs the examples against it, prints what they printed, stops everything again.
#
#   tools/demo.sh BUILD_DIR
set -euo pipefail

build=$(cd "$1" && pwd)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
state=$(mktemp -d "${TMPDIR:-/tmp}/podflare-demo.XXXXXX")
server=

# Nothing is left behind, however this ends.
finish() {
	status=$?
	trap - EXIT INT TERM
	if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then
		wait "$server" || true
	fi
	rm -rf "$state"
	exit $status
}
trap finish EXIT INT TERM

port=$(/usr/bin/python3 -c '
import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])')
url=http://127.0.0.1:$port

echo "demo: starting the system on $url"
"$build/podflare" serve --addr "127.0.0.1:$port" --state "$state" >"$state/out" 2>"$state/err" &
server=$!
tail -f -n +1 --pid=$server "$state/out" 2>/dev/null &
follower=$!
until grep -q '^podflare: ready' "$state/out"; do
	if ! kill -0 "$server" 2>/dev/null; then
		server=
		echo "demo: the system did not start:" >&2
		tail -n 20 "$state/out" "$state/err" >&2
		exit 1
	fi
	sleep 0.1
done
kill "$follower" 2>/dev/null || true
wait "$follower" 2>/dev/null || true

started=$(date +%s)
for example in weather fork; do
	echo "demo: running examples/$example.py"
	echo "----------------------------------------------------------------------"
	PODFLARE_HOSTD_URL=$url PYTHONPATH="$root/sdk/python" /usr/bin/python3 "$root/examples/$example.py"
	echo "----------------------------------------------------------------------"
done
echo "demo: done in $(($(date +%s) - started)) s; stopping the system"
