#!/bin/sh
# Starts a node with the programs in bin/, deploys examples/hello, and shows that it answers. Running
# it again changes only what is not so yet.
set -eu
cd "$(dirname "$0")/.."

sudo=
if [ "$(id -u)" != 0 ]; then sudo="sudo -E"; fi
gantry="$sudo bin/gantry"

# The tag follows the source, so that a change reaches the pods and no change does not.
tag=$(cat examples/hello/*.go examples/hello/page.html | sha256sum | cut -c1-12)
image=hello:$tag

$gantry up --detach
if ! $gantry image ls | grep -q "hello:$tag"; then
	$gantry image build examples/hello --tag "$image" --output bin/hello.tar
	$gantry image load bin/hello.tar
fi
sed "s|image: hello:latest|image: $image|" examples/hello/hello.yaml | $gantry kubectl apply -f - >&2
if ! $gantry kubectl rollout status deployment/hello --timeout=120s >&2; then
	$gantry kubectl get pods -o wide >&2
	$gantry kubectl get events --sort-by=.lastTimestamp >&2
	exit 1
fi

# Node ports answer at the node's address, not at 127.0.0.1.
address=$($gantry kubectl get nodes -o 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}')
url=${HELLO_URL:-http://$address:30080}
tries=0
until answer=$(curl -fsS --max-time 5 "$url/hello.json" 2>&1); do
	tries=$((tries + 1))
	if [ "$tries" -ge 50 ]; then
		echo "up: $url does not answer: $answer" >&2
		exit 1
	fi
	sleep 0.2
done
echo "$url answers $answer"
echo "open $url in a browser, or try: bin/gantry kubectl get pods -o wide"
