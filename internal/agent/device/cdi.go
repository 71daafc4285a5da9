package device

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"gantry.dev/gantry/internal/container"
)

// cdiSpec is a file that describes devices for containers. Source: Container Device Interface
// specification 0.8, https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md.
type cdiSpec struct {
	Version string    `json:"cdiVersion"`
	Kind    string    `json:"kind"`
	Edits   cdiEdits  `json:"containerEdits"`
	Devices []cdiItem `json:"devices"`
}

type cdiItem struct {
	Name  string   `json:"name"`
	Edits cdiEdits `json:"containerEdits"`
}

type cdiEdits struct {
	Env         []string   `json:"env"`
	DeviceNodes []cdiNode  `json:"deviceNodes"`
	Mounts      []cdiMount `json:"mounts"`
	Hooks       []cdiHook  `json:"hooks"`
}

type cdiNode struct {
	Path        string `json:"path"`
	HostPath    string `json:"hostPath"`
	Permissions string `json:"permissions"`
}

type cdiMount struct {
	HostPath      string   `json:"hostPath"`
	ContainerPath string   `json:"containerPath"`
	Options       []string `json:"options"`
}

type cdiHook struct {
	Name    string   `json:"hookName"`
	Path    string   `json:"path"`
	Args    []string `json:"args"`
	Env     []string `json:"env"`
	Timeout *int     `json:"timeout"`
}

// addCDI adds what the descriptions in dirs say of devices named "vendor/class=name". What a
// file says of all its devices is added once.
func (g *Grant) addCDI(names, dirs []string) error {
	specs, err := readCDI(dirs)
	if err != nil {
		return err
	}
	var common []int
	for _, name := range names {
		kind, item, ok := strings.Cut(name, "=")
		found := -1
		for i := range specs { // a later folder wins
			if ok && specs[i].Kind == kind && slices.ContainsFunc(specs[i].Devices, func(d cdiItem) bool { return d.Name == item }) {
				found = i
			}
		}
		if found < 0 {
			return fmt.Errorf("unresolvable CDI devices %s", name)
		}
		spec := specs[found]
		g.edit(spec.Devices[slices.IndexFunc(spec.Devices, func(d cdiItem) bool { return d.Name == item })].Edits)
		if !slices.Contains(common, found) {
			common = append(common, found)
		}
	}
	for _, i := range common {
		g.edit(specs[i].Edits)
	}
	return nil
}

func readCDI(dirs []string) ([]cdiSpec, error) {
	var specs []cdiSpec
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading descriptions of CDI devices: %w", err)
		}
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); ext != ".json" && ext != ".yaml" {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, fmt.Errorf("reading descriptions of CDI devices: %w", err)
			}
			var spec cdiSpec
			if err := yaml.Unmarshal(text, &spec); err != nil {
				return nil, fmt.Errorf("reading descriptions of CDI devices: %s: %w", filepath.Join(dir, e.Name()), err)
			}
			specs = append(specs, spec)
		}
	}
	return specs, nil
}

func (g *Grant) edit(edits cdiEdits) {
	for _, entry := range edits.Env {
		g.addEnv(entry)
	}
	for _, node := range edits.DeviceNodes {
		host := node.HostPath
		if host == "" {
			host = node.Path
		}
		g.addDevice(container.Device{HostPath: host, ContainerPath: node.Path, Permissions: node.Permissions})
	}
	for _, mount := range edits.Mounts {
		g.addMount(container.Mount{
			HostPath: mount.HostPath, ContainerPath: mount.ContainerPath, ReadOnly: slices.Contains(mount.Options, "ro"),
		})
	}
	for _, hook := range edits.Hooks {
		g.Hooks = append(g.Hooks, container.Hook{Stage: hook.Name, Path: hook.Path, Args: hook.Args, Env: hook.Env, TimeoutSeconds: hook.Timeout})
	}
}

func envName(entry string) string {
	name, _, _ := strings.Cut(entry, "=")
	return name
}
