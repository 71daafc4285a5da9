// Package volume makes, refreshes and removes the volumes of pods on one node: emptyDir,
// configMap, secret, projected, downwardAPI, hostPath, and claims bound to a local or hostPath
// volume. Folders are those of the node's own local volumes.
//
// Content from the API is written so that a container sees either the old or the new whole of
// it. Removal never follows a mount or a symbolic link out of the pod's folder: what is mounted
// is unmounted first, and while something still is, nothing is deleted. Start at Manager.
package volume
