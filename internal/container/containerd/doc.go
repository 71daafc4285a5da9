// Package containerd runs containers with containerd as a library: its content store,
// metadata database, snapshotters and image code work in this process, and its runc task
// service works in one gantry-shim process per pod. There is no daemon, no gRPC and no
// plugin registry, so several runtimes may live in one process.
//
// Everything is rebuilt from what is on disk: containerd's database holds sandboxes,
// containers and images with their settings; the shims hold what runs. A new process
// connects to the shims it finds and goes on, whether the old one stopped or was killed.
//
// What is where, below State:
//
//	b/ID/         bundle of a container: config.json, root file system, pipes, exit record
//	ns/SANDBOX/   bind mounts that hold a sandbox's ipc, uts and pid namespaces, and its shm
//	p/SANDBOX/    the shim's process id and its own messages
//	s/            sockets; short names, since a socket's path may have 107 bytes
//	runc/         runc's own state
//
// Start at Runtime.Run, then sandbox.go and container.go. StopAll cleans up without a
// running process.
package containerd
