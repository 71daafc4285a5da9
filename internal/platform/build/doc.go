// Package build makes images of source: the controller of Build objects and the process that does
// the work, gantry-build, which it starts when a build waits and ends when none has for a while.
//
// Nothing of BuildKit is linked here. The process gets namespaces, a cgroup and a network of its
// own, and one socket at which this package serves it what this build may read and write: the
// registry with the rights of its project, and the images that the node has. Start at
// Controller.Run; the process is in Engine.
package build
