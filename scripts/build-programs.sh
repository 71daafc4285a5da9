#!/bin/sh
# Builds the programs that gantry embeds and packs them into internal/programs/bin.
#
#   scripts/build-programs.sh            for this machine
#   GOARCH=arm64 CC=aarch64-linux-gnu-gcc scripts/build-programs.sh
#
# runc needs cgo and libseccomp (Debian: libseccomp-dev); everything else is pure Go. What
# has not changed is answered by Go's build cache and not compressed again. GO names the go
# command.
set -eu
cd "$(dirname "$0")/.."
go=${GO:-go}
GOOS=linux
GOARCH=${GOARCH:-$($go env GOHOSTARCH)}
export GOOS GOARCH
work=${PROGRAMS_DIR:-$PWD/.cache/programs}/${GOOS}_$GOARCH
mkdir -p "$work"

# in FOLDER CGO TAGS LDFLAGS PACKAGE NAME
build() {
	(cd "$1" && CGO_ENABLED=$2 $go build -trimpath -buildvcs=false -tags "$3" -ldflags "-s -w $4" -o "$work/$6" "$5")
}

if ! ${CC:-cc} -xc -E - -o /dev/null 2>/dev/null <<'C'
#include <seccomp.h>
C
then
	echo "build-programs: a C compiler with libseccomp's headers is needed (Debian: apt-get install gcc libc6-dev libseccomp-dev pkg-config)" >&2
	exit 1
fi
runc_version=$(cd runtime && $go list -m -f '{{.Version}}' github.com/opencontainers/runc)
build runtime 1 "seccomp,netgo,osusergo" "-extldflags -static -X main.version=${runc_version#v}" github.com/opencontainers/runc runc
build runtime 0 no_grpc "" github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 containerd-shim-runc-v2
set -- "runc=$work/runc" "containerd-shim-runc-v2=$work/containerd-shim-runc-v2"
for name in gantry-shim gantry-edge gantry-build gantry-static gantry-probe; do
	if [ -f "cmd/$name/main.go" ]; then
		tags=no_grpc
		if [ "$name" = gantry-build ]; then
			tags= # BuildKit speaks gRPC within itself
		fi
		build . 0 "$tags" "" "./cmd/$name" "$name"
		set -- "$@" "$name=$work/$name"
	fi
done
# pack runs here, whatever the programs are built for.
target=internal/programs/bin/${GOOS}_$GOARCH
unset GOOS GOARCH
CGO_ENABLED=0 $go run ./internal/programs/pack "$target" "$@"
