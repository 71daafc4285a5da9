//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

const (
	applyNamespace = "bench-apply"
	applyObjects   = 1024 // of each kind; each worker has its own
	maxWorkers     = 256
)

// applied is a kind of object that is applied again and again, each time with another value.
type applied struct {
	key      string
	resource string
	client   func(s *system) rest.Interface
	manifest func(name string, revision int64) runtime.Object
}

func appliedConfigMap() applied {
	return applied{
		"applied ConfigMaps", "configmaps", func(s *system) rest.Interface { return s.loader.CoreV1().RESTClient() },
		func(name string, revision int64) runtime.Object {
			object := configMap(name, int(revision))
			object.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}
			return object
		},
	}
}

// appliedDeployment changes an annotation and the replicas. The Deployments are paused, so no pods come of it; the
// controllers of both systems write their status.
func appliedDeployment() applied {
	return applied{
		"applied Deployments", "deployments", func(s *system) rest.Interface { return s.loader.AppsV1().RESTClient() },
		func(name string, revision int64) runtime.Object {
			object := deployment(name, int32(revision%3))
			object.TypeMeta = metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}
			object.Annotations = map[string]string{"bench.gantry.dev/revision": fmt.Sprint(revision)}
			object.Spec.Paused = true
			return object
		},
	}
}

// prepareApply makes the objects by applying them, then applies them anew as the same manager, without force.
func prepareApply(a applied) func(context.Context, *system) (operation, func(context.Context) error, error) {
	return func(ctx context.Context, s *system) (operation, func(context.Context) error, error) {
		if err := s.once(applyNamespace, func() error { return s.namespace(ctx, applyNamespace) }); err != nil {
			return nil, nil, err
		}
		client := a.client(s)
		apply := func(ctx context.Context, i int, revision int64) error {
			name := objectName(i)
			body, err := json.Marshal(a.manifest(name, revision))
			if err != nil {
				return fmt.Errorf("encode a manifest: %w", err)
			}
			result := client.Patch(types.ApplyPatchType).Namespace(applyNamespace).Resource(a.resource).Name(name).
				Param("fieldManager", "bench").Body(body).Do(ctx)
			return result.Error()
		}
		var revision atomic.Int64
		err := s.once(a.key, func() error {
			return fill(ctx, 32, applyObjects, func(ctx context.Context, i int) error { return apply(ctx, i, 0) })
		})
		if err != nil {
			return nil, nil, err
		}
		const each = applyObjects / maxWorkers
		return func(ctx context.Context, worker, i int) error {
			return apply(ctx, worker*each+i%each, revision.Add(1))
		}, nil, nil
	}
}
