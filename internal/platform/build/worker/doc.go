// Package worker is the program gantry-build: BuildKit's engine, the Go compiler and what makes
// images of static files, in a process of its own.
//
// gantry starts it in namespaces and a cgroup of its own with a network that leads to the
// internet alone, and ends it when nothing is built. It is the first process of its PID
// namespace, so that its end takes all that it started with it; mounts and runc's state live in
// its mount namespace and vanish with that. Images come and go through one socket, served by
// gantry, which decides what this build may read and write. Start at Main.
package worker
