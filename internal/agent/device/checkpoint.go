package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"gantry.dev/gantry/internal/durable"
)

// checkpointData is the content of the checkpoint.
type checkpointData struct {
	Resources []string          `json:"resources"` // that were offered
	Entries   []checkpointEntry `json:"entries"`
}

type checkpointEntry struct {
	Pod       types.UID          `json:"pod"`
	Container string             `json:"container"`
	Resource  string             `json:"resource"`
	IDs       []string           `json:"ids"`
	Nodes     map[string][]int64 `json:"nodes,omitempty"`
	Response  json.RawMessage    `json:"response"`
}

// load reads the checkpoint. The resources it names have no devices until their plugins
// register again.
func (m *Manager) load(now time.Time) error {
	text, err := os.ReadFile(m.opts.Checkpoint)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading which pods hold devices: %w", err)
	}
	var data checkpointData
	if err := json.Unmarshal(text, &data); err != nil {
		return fmt.Errorf("reading which pods hold devices: %s: %w", m.opts.Checkpoint, err)
	}
	for _, name := range data.Resources {
		m.resources[name] = &offer{stoppedAt: now}
	}
	for _, e := range data.Entries {
		response := &pluginapi.ContainerAllocateResponse{}
		if err := protojson.Unmarshal(e.Response, response); err != nil {
			return fmt.Errorf("reading which pods hold devices: %s: %w", m.opts.Checkpoint, err)
		}
		m.pods.put(e.Pod, e.Container, e.Resource, &held{IDs: e.IDs, Nodes: e.Nodes, Response: response})
	}
	return nil
}

func (h holdings) put(pod types.UID, container, resource string, what *held) {
	if h[pod] == nil {
		h[pod] = map[string]map[string]*held{}
	}
	if h[pod][container] == nil {
		h[pod][container] = map[string]*held{}
	}
	h[pod][container][resource] = what
}

func (h holdings) get(pod types.UID, container, resource string) *held {
	return h[pod][container][resource]
}

// drop forgets one entry.
func (h holdings) drop(pod types.UID, container, resource string) {
	delete(h[pod][container], resource)
	if len(h[pod][container]) == 0 {
		delete(h[pod], container)
	}
	if len(h[pod]) == 0 {
		delete(h, pod)
	}
}

// saveLocked writes the checkpoint; an error is logged, and the next save writes all. m.mu is held.
func (m *Manager) saveLocked() {
	if err := m.writeLocked(); err != nil {
		m.log.Error("cannot write down which pods hold devices", "error", err)
	}
}

// writeLocked writes the checkpoint. m.mu is held.
func (m *Manager) writeLocked() error {
	data := checkpointData{Resources: slices.Sorted(maps.Keys(m.resources))}
	for _, pod := range slices.Sorted(maps.Keys(m.pods)) {
		for _, container := range slices.Sorted(maps.Keys(m.pods[pod])) {
			for _, name := range slices.Sorted(maps.Keys(m.pods[pod][container])) {
				h := m.pods[pod][container][name]
				if h.Response == nil {
					continue // the plugin is still asked: no container of it runs
				}
				response, err := protojson.Marshal(h.Response)
				if err != nil {
					return fmt.Errorf("encoding a plugin's answer: %w", err)
				}
				data.Entries = append(data.Entries, checkpointEntry{
					Pod: pod, Container: container, Resource: name, IDs: h.IDs, Nodes: h.Nodes, Response: response,
				})
			}
		}
	}
	text, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("encoding which pods hold devices: %w", err)
	}
	return durable.WriteFile(m.opts.Checkpoint, text, 0o600)
}
