package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/volume/local"
)

// LocalVolumes is the node's disk as far as it holds persistent volumes: volume.Folders is one.
type LocalVolumes interface {
	// Dir is the path below which the volumes' folders lie.
	Dir() string
	// Remove removes a folder with its data. One that is not there is no error.
	Remove(ctx context.Context, name string) error
	// Forget drops what is remembered of removed folders but for those of keep.
	Forget(keep []string)
}

// folderRetry is the wait after a folder could not be removed, or the node not be told.
const folderRetry = 15 * time.Second

// runLocalVolumes removes the folders that the control plane names in the node's annotation,
// and says which are gone, until ctx ends.
func (a *Agent) runLocalVolumes(ctx context.Context) {
	for {
		wait := idle
		if err := a.syncLocalVolumes(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("local volumes will be looked at again", "nodeName", a.opts.NodeName, "error", err)
			wait = folderRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-a.folderNews:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// noteFolders wakes runLocalVolumes if what the node's annotations say of local volumes is new.
func (a *Agent) noteFolders(node *corev1.Node) {
	now := [3]string{node.Annotations[local.DirAnnotation], node.Annotations[local.RemoveAnnotation], node.Annotations[local.RemovedAnnotation]}
	if last := a.folders.Swap(&now); last != nil && *last == now {
		return
	}
	select {
	case a.folderNews <- struct{}{}:
	default:
	}
}

// syncLocalVolumes does what the node's annotations ask for, once.
func (a *Agent) syncLocalVolumes(ctx context.Context) error {
	var node corev1.Node
	if err := a.client.Get(ctx, client.ObjectKey{Name: a.opts.NodeName}, &node); err != nil {
		return client.IgnoreNotFound(err) // its event comes when it is registered
	}
	wanted := local.Split(node.Annotations[local.RemoveAnnotation])
	var gone []string
	var failure error
	for _, name := range wanted {
		if err := a.opts.LocalVolumes.Remove(ctx, name); err != nil {
			failure = err
			a.events.node(corev1.EventTypeWarning, "VolumeFailedDelete", fmt.Sprintf("Local volume %s is still there: %v", name, err))
			continue
		}
		if !slices.Contains(local.Split(node.Annotations[local.RemovedAnnotation]), name) {
			a.log.Info("local volume removed", "nodeName", a.opts.NodeName, "name", name)
		}
		gone = append(gone, name)
	}
	if err := a.annotateNode(ctx, &node, map[string]string{
		local.DirAnnotation: a.opts.LocalVolumes.Dir(), local.RemovedAnnotation: local.Join(gone),
	}); err != nil {
		return err
	}
	// What is no longer asked for belongs to volumes that are no more.
	a.opts.LocalVolumes.Forget(wanted)
	return failure
}

// annotateNode brings annotations of the node up to date; an empty one is taken away.
func (a *Agent) annotateNode(ctx context.Context, node *corev1.Node, want map[string]string) error {
	changes := map[string]any{}
	for k, v := range want {
		switch {
		case node.Annotations[k] == v:
		case v == "":
			changes[k] = nil
		default:
			changes[k] = v
		}
	}
	if len(changes) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": changes}})
	if err != nil {
		return fmt.Errorf("encoding the node's annotations: %w", err)
	}
	target := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: a.opts.NodeName}}
	if err := a.client.Patch(ctx, target, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("annotating the node: %w", err)
	}
	return nil
}
