#!/bin/sh
# Compares the gateway with haproxy and nginx from Debian's packages; run as root.
# Arguments go to the benchmark, as -rounds 5. GO names the go command.
set -eu
cd "$(dirname "$0")/.."
go=${GO:-go}
for program in haproxy nginx wrk; do
	command -v $program >/dev/null || {
		printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d # install them, start nothing
		chmod +x /usr/sbin/policy-rc.d
		apt-get install -y --no-install-recommends haproxy nginx-light wrk || { rm -f /usr/sbin/policy-rc.d; exit 1; }
		rm -f /usr/sbin/policy-rc.d
		break
	}
done
mkdir -p bin
CGO_ENABLED=0 $go build -trimpath -ldflags "-s -w" -o bin/gantry-edge ./cmd/gantry-edge
(cd test && $go build -o ../bin/bench ./bench)
exec bin/bench -bin bin -only gateway "$@"
