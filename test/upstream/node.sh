# Runs a node in a mount namespace of its own: DIR NAME KUBERNETES RUNTIME RUNC IMAGE...
dir=$1 name=$2 kubernetes=$3 runtime=$4 runc=$5
shift 5
export PATH="$runtime:$runc:$PATH"

# Each node has its own of what the programs have at fixed places.
mkdir -p "$dir"/kubelet "$dir"/pods "$dir"/links "$dir"/run "$dir"/cdi "$dir"/cni /var/lib/kubelet /var/log/pods /var/log/containers /run/containerd /run/netns /var/run/cdi
mount --make-rshared /
mount -t tmpfs tmpfs /run/netns
mount --bind "$dir/kubelet" /var/lib/kubelet
mount --bind "$dir/pods" /var/log/pods
mount --bind "$dir/links" /var/log/containers
mount --bind "$dir/run" /run/containerd
mount --bind "$dir/cdi" /var/run/cdi
mount --make-rshared /
mv "$dir/cni.conflist" "$dir/cni/10-upstream.conflist"

# The cgroup of the node: on version 1 a cpuset has to be filled by hand.
for controller in /sys/fs/cgroup/*/; do
	case $controller in */unified/) continue ;; esac
	mkdir -p "${controller}upstream-$name"
done
if [ -d "/sys/fs/cgroup/cpuset/upstream-$name" ]; then
	for file in cpuset.cpus cpuset.mems; do
		cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset/upstream-$name/$file"
	done
fi
echo 1 >/proc/sys/net/ipv4/ip_forward
if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables; fi

containerd -c "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 &
tries=0
until ctr -a /run/containerd/containerd.sock version >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ $tries -lt 300 ] || { echo "containerd does not answer"; exit 1; }
	sleep 0.1
done
for image in "$@"; do
	ctr -a /run/containerd/containerd.sock -n k8s.io images import --local "$image" >/dev/null
done
"$kubernetes/kube-proxy" --config="$dir/proxy.yaml" >"$dir/kube-proxy.log" 2>&1 &
exec "$kubernetes/kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$dir/kubelet.kubeconfig" --hostname-override="$name" --node-ip="$(cat "$dir/address")" \
	--root-dir=/var/lib/kubelet >"$dir/kubelet.log" 2>&1
