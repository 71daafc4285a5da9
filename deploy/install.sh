#!/bin/sh
# Installs gantry from a release archive that lies beside this script or at a given address, after
# checking its sum.
#
#   install.sh                                     newest archive beside the script, to /usr/local/bin
#   install.sh --from https://HOST/PATH --version v1.2.3 --to DIR
#
# Manual pages and completions for bash, zsh and fish go to the folder share beside DIR, where man and shells look for those of
# programs in DIR. --no-docs leaves them out.
set -eu

from=$(cd "$(dirname "$0")" && pwd)
version=
to=/usr/local/bin
docs=yes
while [ $# -gt 0 ]; do
	case $1 in
	--from | --version | --to)
		if [ $# -lt 2 ]; then
			echo "install: $1 needs a value" >&2
			exit 2
		fi
		case $1 in --from) from=$2 ;; --version) version=$2 ;; --to) to=$2 ;; esac
		shift 2
		;;
	--no-docs)
		docs=
		shift
		;;
	*)
		echo "install: $1 is not known; use --from, --version, --to and --no-docs" >&2
		exit 2
		;;
	esac
done

case $(uname -s) in Linux) os=linux ;; Darwin) os=darwin ;; *) echo "install: $(uname -s) is not supported; take the archive for it by hand" >&2; exit 1 ;; esac
case $(uname -m) in x86_64 | amd64) arch=amd64 ;; aarch64 | arm64) arch=arm64 ;; *) echo "install: there is no gantry for $(uname -m)" >&2; exit 1 ;; esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch() { # fetch NAME
	case $from in
	http://* | https://*) curl -fsSL -o "$work/$1" "$from/$1" ;;
	*) cp "$from/$1" "$work/$1" ;;
	esac
}
fetch SHA256SUMS
if [ -z "$version" ]; then
	version=$(sed -n "s/.* [*]\{0,1\}gantry_\(.*\)_${os}_${arch}\.tar\.gz\$/\1/p" "$work/SHA256SUMS" | sort -V | tail -n 1)
fi
name=gantry_${version}_${os}_$arch
if ! grep -q " [*]\{0,1\}$name\.tar\.gz\$" "$work/SHA256SUMS"; then
	echo "install: $from has no $name.tar.gz" >&2
	exit 1
fi
fetch "$name.tar.gz"
if command -v sha256sum >/dev/null; then sum="sha256sum"; else sum="shasum -a 256"; fi
(cd "$work" && grep " [*]\{0,1\}$name\.tar\.gz\$" SHA256SUMS | $sum -c - >/dev/null) || {
	echo "install: the sum of $name.tar.gz is wrong; nothing was installed" >&2
	exit 1
}
tar -C "$work" -xzf "$work/$name.tar.gz"
mkdir -p "$to"
# A new file and a rename: a running gantry keeps the old one.
cp "$work/$name/gantry" "$to/.gantry.new"
chmod 755 "$to/.gantry.new"
mv "$to/.gantry.new" "$to/gantry"
put() { # put FILE FOLDER NAME
	mkdir -p "$share/$2" && cp "$1" "$share/$2/$3" && chmod 644 "$share/$2/$3"
}
if [ -n "$docs" ] && [ -d "$work/$name/man" ]; then
	share=$(dirname "$to")/share
	rm -f "$share"/man/man1/gantry.1 "$share"/man/man1/gantry-*.1 # those of commands that are no more
	for page in "$work/$name"/man/man1/*.1; do put "$page" man/man1 "${page##*/}"; done
	put "$work/$name/completions/gantry.bash" bash-completion/completions gantry
	put "$work/$name/completions/_gantry" zsh/site-functions _gantry
	put "$work/$name/completions/gantry.fish" fish/vendor_completions.d gantry.fish
fi
echo "installed $("$to/gantry" version | sed -n 's/^gantry  *//p') as $to/gantry"
if [ $os = linux ]; then echo "try: sudo gantry doctor; sudo gantry up --detach"; fi
