// Package local is what the control plane and a node say to each other about local
// volumes: folders on one node's disk, made for claims of the built-in provisioner.
//
// A volume object is made by the control plane, its folder by the node: when a pod that
// uses it starts. Both meet in annotations of the Node, each with one writer. The node
// says where its volumes lie (DirAnnotation); the control plane lists the folders that
// must go (RemoveAnnotation) once that can no longer be taken back; the node answers with
// those of the list that are gone from its disk (RemovedAnnotation). Only then does
// the volume object go, so a node that is away finds its orders when it is back.
//
// The functions here are pure. Folders on disk are the business of package volume.
package local
