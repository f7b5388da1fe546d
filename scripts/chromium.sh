#!/bin/sh
# Prints the path of Debian's Chromium, which it installs where it may; fails where there is none.
command -v chromium && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 1
apt-get install -y --no-install-recommends chromium fonts-dejavu-core >&2 || { apt-get update >&2 && \
  apt-get install -y --no-install-recommends chromium fonts-dejavu-core >&2; } || exit 1
command -v chromium
