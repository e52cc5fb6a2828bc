#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs as root inside the root; the one of the template default has made the user.
set -eu

# Tests of the packages: 140 MiB that nothing else imports. (Not by "excludes": when a package with
# Python in it is set up, all its sources are compiled, and one that is missing is an error.)
cd /usr/lib/python3/dist-packages
find matplotlib mpl_toolkits numpy pandas scipy sklearn sympy -type d -name tests -prune \
	-exec rm -r {} +

# The list of fonts, which matplotlib would else make at its first import: many seconds. The folder is
# the one that podflare-matplotlib.pth names; the user may write there, so that matplotlib likes it.
dir=/var/cache/podflare/matplotlib
mkdir -p "$dir"
MPLCONFIGDIR=$dir MPLBACKEND=Agg PYTHONHASHSEED=0 python3 -B -c 'import matplotlib.font_manager'
[ -s "$dir"/fontlist-*.json ]
chown -R user:user "$dir"
