#!/bin/sh
# Installs what a fresh Debian machine lacks for building and testing Gantry, and says so first.
#
#   scripts/deps.sh            for building and testing
#   scripts/deps.sh --release  also for cross-compiling the embedded programs
set -eu

missing=
need() { # need PACKAGE TEST...: the package is missing when the test fails
	package=$1
	shift
	"$@" >/dev/null 2>&1 || missing="$missing $package"
}
has_header() { printf '#include <%s>\n' "$1" | cc -E - -o /dev/null; }

need git command -v git
need curl command -v curl
need gcc command -v cc
need libc6-dev has_header stdlib.h
need libseccomp-dev has_header seccomp.h
need pkg-config command -v pkg-config
need iproute2 command -v ip
need busybox-static test -x /bin/busybox
if [ "${1:-}" = --release ]; then
	need gcc-aarch64-linux-gnu command -v aarch64-linux-gnu-gcc
	need libc6-dev-arm64-cross test -e /usr/aarch64-linux-gnu/include/stdint.h
	need libseccomp-dev:arm64 test -e /usr/lib/aarch64-linux-gnu/libseccomp.a
fi

if [ -n "$missing" ]; then
	if ! command -v apt-get >/dev/null; then
		echo "deps: this machine lacks$missing, and it has no apt-get; install them by other means" >&2
		exit 1
	fi
	sudo=
	if [ "$(id -u)" != 0 ]; then sudo=sudo; fi
	echo "deps: installing with apt-get:$missing" >&2
	case $missing in *:arm64*) $sudo dpkg --add-architecture arm64 ;; esac
	$sudo apt-get update -qq
	# shellcheck disable=SC2086 # one word a package
	DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

want=$(sed -n 's/^go //p' "$(dirname "$0")/../go.mod")
if ! command -v "${GO:-go}" >/dev/null; then
	echo "deps: the go command is missing; install Go $want or newer from https://go.dev/dl" >&2
	exit 1
fi
