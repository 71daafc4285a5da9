package agent

import (
	"slices"
	"testing"
	"time"

	"gantry.dev/gantry/internal/container"
)

func TestSurplusContainers(t *testing.T) {
	var list []container.Status
	for i := range 5 {
		list = append(list, container.Status{ID: string(rune('a' + i)), Name: "main", Attempt: i, State: container.StateExited})
	}
	list[4].State = container.StateRunning
	var got []string
	for _, c := range surplus(list) {
		got = append(got, c.ID)
	}
	if want := []string{"c", "b", "a"}; !slices.Equal(got, want) {
		t.Errorf("surplus %v, want %v", got, want)
	}
}

func TestImageCollection(t *testing.T) {
	bubble(t, func(r *rig) {
		r.create(newPod("web"))
		for _, ref := range []string{"old:1", "new:1"} {
			if _, err := r.images.Pull(t.Context(), ref, nil); err != nil {
				t.Fatal(err)
			}
		}
		used := int64(90_000)
		r.agent.opts.DiskUsage = func(string) (int64, int64, error) { return used, 100_000, nil }
		r.agent.unused.since = map[string]time.Time{"sha256:old:1": time.Now().Add(-time.Hour), "sha256:new:1": time.Now()}
		if err := r.agent.collectImages(t.Context(), time.Now(), false); err != nil {
			t.Fatal(err)
		}
		var left []string
		images, _ := r.images.Images(t.Context())
		for _, i := range images {
			left = append(left, i.Names[0])
		}
		if want := []string{"docker.io/library/busybox:latest", "new:1"}; !slices.Equal(left, want) {
			t.Errorf("left are %v, want %v: the one in use and the one that is too young", left, want)
		}
		used = 84_000
		r.agent.unused.since = map[string]time.Time{"sha256:new:1": time.Now().Add(-time.Hour)}
		if err := r.agent.collectImages(t.Context(), time.Now(), false); err != nil {
			t.Fatal(err)
		}
		if images, _ = r.images.Images(t.Context()); len(images) != 2 {
			t.Error("images were removed below the threshold")
		}
		if err := r.agent.collectImages(t.Context(), time.Now(), true); err != nil {
			t.Fatal(err)
		}
		if images, _ = r.images.Images(t.Context()); len(images) != 1 {
			t.Errorf("%d images are left after all unused ones were to go, want 1", len(images))
		}
	})
}

func TestRegistryMatches(t *testing.T) {
	for name, tc := range map[string]struct {
		registry, ref string
		want          int
	}{
		"host":       {"ghcr.io", "ghcr.io/acme/shop:1", 0},
		"path":       {"https://ghcr.io/acme", "ghcr.io/acme/shop:1", 4},
		"other path": {"ghcr.io/other", "ghcr.io/acme/shop:1", -1},
		"prefix":     {"ghcr.io/ac", "ghcr.io/acme/shop:1", -1},
		"wildcard":   {"*.azurecr.io", "my.azurecr.io/x", 0},
		"docker hub": {"https://index.docker.io/v1/", "docker.io/library/busybox:latest", 0},
		"other host": {"quay.io", "ghcr.io/acme/shop:1", -1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := matches(tc.registry, tc.ref); got != tc.want {
				t.Errorf("matches(%q, %q) = %d, want %d", tc.registry, tc.ref, got, tc.want)
			}
		})
	}
}
