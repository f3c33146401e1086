#!/usr/bin/env bash
# Unpacks a Debian package, and what it depends on and this machine lacks, below a folder. Needs no root and installs nothing.
#
#   tests/support/tools/fetch-debian.sh PACKAGE FOLDER
#
# Does nothing if FOLDER holds it already or a program of that name is on PATH, which is what tests look for first
# (tests/support/programs.py). Where there is no apt it only says what to do instead.
set -euo pipefail
package=$1 folder=$2
if [ -e "$folder/.complete" ] || command -v "$package" >/dev/null; then
	exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
	echo "fetch-debian.sh: no Debian here; install $package by other means and put it on PATH, its tests are skipped until then" >&2
	exit 0
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/{lists,cache/archives,root}
# Lists and downloads of our own: the machine's need root, and may be missing or old.
options=(-qq -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" -o Dir::State::lists="$scratch/lists" -o Dir::Cache="$scratch/cache")

apt-get "${options[@]}" update
apt-get "${options[@]}" install --no-install-recommends --print-uris -y "$package" |
	sed -n "s/^'[^']*' \([^_]*\)_.*/\1/p" | sort -u >"$scratch/names"
[ -s "$scratch/names" ] || echo "$package" >"$scratch/names" # installed already, but not where its tests look
(cd "$scratch/cache/archives" && xargs -a "$scratch/names" apt-get "${options[@]}" download)
for archive in "$scratch"/cache/archives/*.deb; do
	dpkg -x "$archive" "$scratch/root"
done
touch "$scratch/root/.complete"
mkdir -p "$(dirname "$folder")"
rm -rf "$folder"
mv "$scratch/root" "$folder"
