#!/bin/sh
# Builds the archives of a release into dist/: whole nodes for Linux, clients for macOS and Windows.
#
#   VERSION=v1.2.3 LDFLAGS=... scripts/release.sh
set -eu
cd "$(dirname "$0")/.."
go=${GO:-go}
rm -rf dist
mkdir -p dist

build() { # build OS ARCH NAME TAGS
	folder=dist/gantry_${VERSION}_$1_$2
	mkdir -p "$folder"
	GOOS=$1 GOARCH=$2 CGO_ENABLED=0 $go build -trimpath -tags "$4" -ldflags "$LDFLAGS" -o "$folder/$3" ./cmd/gantry
	cp LICENSE README.md CHANGELOG.md "$folder/"
}
pack() { # pack OS ARCH: the same names, dates and owners give the same archive
	name=gantry_${VERSION}_$1_$2
	tar -C dist --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -cf - "$name" | gzip -9n >"dist/$name.tar.gz"
	rm -r "dist/$name"
}

for arch in amd64 arm64; do
	if [ "$arch" = "$($go env GOHOSTARCH)" ]; then
		scripts/build-programs.sh
	else
		GOARCH=$arch CC=${CROSS_CC:-aarch64-linux-gnu-gcc} scripts/build-programs.sh
	fi
	build linux "$arch" gantry ""
	cp deploy/gantry.service "dist/gantry_${VERSION}_linux_$arch/"
	pack linux "$arch"
done
for target in darwin/amd64 darwin/arm64 windows/amd64; do
	name=gantry
	if [ "${target%/*}" = windows ]; then name=gantry.exe; fi
	build "${target%/*}" "${target#*/}" "$name" clientonly
	pack "${target%/*}" "${target#*/}"
done
cp deploy/install.sh dist/
(cd dist && sha256sum *.tar.gz install.sh >SHA256SUMS)
ls -l dist
