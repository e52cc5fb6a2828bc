# Proxies of a sandbox with egress, for shells that begin without them (su -). The agent writes and
# removes the file.
[ ! -r /run/podflare/egress-env.sh ] || . /run/podflare/egress-env.sh
