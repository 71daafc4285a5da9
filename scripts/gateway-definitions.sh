#!/bin/sh
# Copies the Gateway API's definitions and their licence from the module that go.mod names into the
# folder that is embedded, as compressed JSON.
set -eu
cd "$(dirname "$0")/../internal/controller/gateway/definitions"
"${GO:-go}" run generate.go
ls -l ./*.gz LICENSE
