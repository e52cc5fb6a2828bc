#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs as root inside the new root when all packages are installed and files/ is copied over it.
set -eu

# The user who runs the code. No password; sudo asks for none (etc/sudoers.d/user).
useradd --create-home --uid 1000 --user-group --shell /bin/bash user
chmod 440 /etc/sudoers.d/user
visudo -cq
