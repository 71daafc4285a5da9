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
sbom() { # sbom OS ARCH NAME [DIR]: what the program is made of, beside its archive
	name=gantry_${VERSION}_$1_$2
	CGO_ENABLED=0 $go run ./internal/programs/sbom "$VERSION" "dist/$name/$3" ${4:+"$4"} >"dist/$name.cdx.json"
}
papers() { # papers PROGRAM: manual pages and completions, of a node and of a client, from a program that runs here
	for what in node clients; do
		mkdir -p "dist/papers/$what/completions"
		"$1" completion bash >"dist/papers/$what/completions/gantry.bash"
		"$1" completion zsh >"dist/papers/$what/completions/_gantry"
		"$1" completion fish >"dist/papers/$what/completions/gantry.fish"
	done
	"$1" man dist/papers/node/man/man1
	"$1" man --clients dist/papers/clients/man/man1
	"$1" completion powershell >dist/papers/gantry.ps1
}
pack() { # pack OS ARCH: the same names, dates and owners give the same archive
	name=gantry_${VERSION}_$1_$2
	tar -C dist --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -cf - "$name" | gzip -9n >"dist/$name.tar.gz"
	rm -r "dist/$name"
}

# This machine's own comes first: it writes the papers of all.
host=$($go env GOHOSTARCH)
for arch in $host $(echo amd64 arm64 | sed "s/ *$host *//"); do
	if [ "$arch" = "$host" ]; then
		scripts/build-programs.sh
	else
		GOARCH=$arch CC=${CROSS_CC:-aarch64-linux-gnu-gcc} scripts/build-programs.sh
	fi
	build linux "$arch" gantry ""
	if [ "$arch" = "$host" ]; then papers "dist/gantry_${VERSION}_linux_$arch/gantry"; fi
	cp -r dist/papers/node/* "dist/gantry_${VERSION}_linux_$arch/"
	cp deploy/gantry.service "dist/gantry_${VERSION}_linux_$arch/"
	sbom linux "$arch" gantry "internal/programs/bin/linux_$arch"
	pack linux "$arch"
done
for target in darwin/amd64 darwin/arm64 windows/amd64; do
	name=gantry
	if [ "${target%/*}" = windows ]; then name=gantry.exe; fi
	build "${target%/*}" "${target#*/}" "$name" clientonly
	if [ "${target%/*}" = windows ]; then
		cp dist/papers/gantry.ps1 "dist/gantry_${VERSION}_windows_${target#*/}/"
	else
		cp -r dist/papers/clients/* "dist/gantry_${VERSION}_${target%/*}_${target#*/}/"
	fi
	sbom "${target%/*}" "${target#*/}" "$name"
	pack "${target%/*}" "${target#*/}"
done
rm -r dist/papers
cp deploy/install.sh dist/
(cd dist && sha256sum *.tar.gz *.cdx.json install.sh >SHA256SUMS)
ls -l dist
