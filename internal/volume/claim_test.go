//go:build linux

package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"gantry.dev/gantry/internal/volume/local"
)

// boundTo makes a claim and a volume that are bound to each other.
func boundTo(s *source, name string, change func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)) {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Annotations: map[string]string{bindCompleted: "yes"}},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + name},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name, Annotations: map[string]string{local.ProvisionedBy: local.Provisioner, local.NodeAnnotation: "n1"}},
		Spec: corev1.PersistentVolumeSpec{
			ClaimRef:               &corev1.ObjectReference{Namespace: "shop", Name: name, UID: claim.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/elsewhere/pv-" + name + "-1"}},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
	}
	if change != nil {
		change(claim, pv)
	}
	if s.claims == nil {
		s.claims, s.volumes = map[string]*corev1.PersistentVolumeClaim{}, map[string]*corev1.PersistentVolume{}
	}
	s.claims[name], s.volumes[pv.Name] = claim, pv
}

func claimant(uid string, claims ...string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-" + uid, UID: types.UID(uid)}}
	for _, claim := range claims {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
	}
	return pod
}

func TestLocalVolumeOutlivesItsPods(t *testing.T) {
	s := &source{}
	boundTo(s, "data", nil)
	m := newManager(t, s)
	first, err := m.SetUp(t.Context(), claimant("a", "data"), Facts{})
	if err != nil {
		t.Fatal(err)
	}
	if mounted, err := mountinfo.Mounted(first["data"].HostPath); err != nil || !mounted {
		t.Fatalf("%s is not mounted: %v", first["data"].HostPath, err)
	}
	if err := os.WriteFile(filepath.Join(first["data"].HostPath, "orders"), []byte("7"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.TearDown(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(m.folders.Dir(), "pv-data-1", "orders")); err != nil {
		t.Fatalf("the data went with the pod: %v", err)
	}
	second, err := m.SetUp(t.Context(), claimant("b", "data"), Facts{})
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(second["data"].HostPath, "orders")); err != nil || string(data) != "7" {
		t.Errorf("the next pod reads %q, %v", data, err)
	}
}

func TestClaimsThatCannotBeUsed(t *testing.T) {
	now := metav1.Now()
	for name, tc := range map[string]struct {
		change func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)
		want   string
	}{
		"not bound": {func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			c.Status.Phase = corev1.ClaimPending
		}, "PVC is not bound"},
		"half bound":     {func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) { c.Annotations = nil }, "PVC is not bound"},
		"being deleted":  {func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) { c.DeletionTimestamp = &now }, "PVC is being deleted"},
		"no volume":      {func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) { c.Spec.VolumeName = "gone" }, "failed to fetch PV gone"},
		"another's":      {func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) { pv.Spec.ClaimRef.UID = "x" }, "not bound to this PVC"},
		"leaving volume": {func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) { pv.DeletionTimestamp = &now }, "marked for deletion"},
		"another node's": {func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			pv.Annotations[local.NodeAnnotation] = "n2"
		}, `on node "n2"`},
		"hostile folder": {func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) { pv.Spec.Local.Path = "/x/.." }, "cannot name a local volume"},
		"missing path":   {func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) { pv.Annotations = nil }, `path "/elsewhere/pv-data-1" does not exist`},
		"a network's": {func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			pv.Spec.Local, pv.Spec.NFS = nil, &corev1.NFSVolumeSource{}
		}, "kind nfs, which is not supported"},
		"a block device": {func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			pv.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
		}, "block devices are not supported"},
		"a missing claim": {func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {}, "failed to fetch PVC"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &source{}
			boundTo(s, "data", tc.change)
			m := newManager(t, s)
			pod := claimant("a", "data")
			if name == "a missing claim" {
				pod = claimant("a", "other")
			}
			_, err := m.SetUp(t.Context(), pod, Facts{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("SetUp = %v, want %q", err, tc.want)
			}
			if err := m.TearDown(t.Context(), "a"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestVolumeStaysWhileItsClaimGoes(t *testing.T) {
	s := &source{}
	boundTo(s, "data", nil)
	m := newManager(t, s)
	pod := claimant("a", "data")
	if _, err := m.SetUp(t.Context(), pod, Facts{}); err != nil {
		t.Fatal(err)
	}
	now := metav1.Now()
	s.claims["data"].DeletionTimestamp = &now
	if _, err := m.SetUp(t.Context(), pod, Facts{}); err != nil {
		t.Errorf("after the claim's deletion: %v", err)
	}
	again, err := New(s, m.opts) // the agent was started again
	if err != nil {
		t.Fatal(err)
	}
	mounted, err := again.SetUp(t.Context(), pod, Facts{})
	if err != nil || mounted["data"].HostPath != again.localTarget("a", s.volumes["pv-data"]) {
		t.Errorf("after a restart: %v, %v", mounted, err)
	}
	if list, err := mountsBelow(again.podDir("a")); err != nil || len(list) != 1 {
		t.Errorf("mounts %v, %v; want one", list, err)
	}
}

func TestReadWriteOncePod(t *testing.T) {
	s := &source{}
	boundTo(s, "data", func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
		pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	})
	m := newManager(t, s)
	if _, err := m.SetUp(t.Context(), claimant("a", "data"), Facts{}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.SetUp(t.Context(), claimant("b", "data"), Facts{}); err == nil || !strings.Contains(err.Error(), "already in use by another pod") {
		t.Errorf("a second pod: %v", err)
	}
	if err := m.TearDown(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.SetUp(t.Context(), claimant("b", "data"), Facts{}); err != nil {
		t.Errorf("after the first has gone: %v", err)
	}
}

func TestFoldersRemove(t *testing.T) {
	s := &source{}
	boundTo(s, "data", nil)
	m := newManager(t, s)
	f := m.folders
	path, err := f.Ensure("pv-1")
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	for _, err := range []error{
		os.WriteFile(secret, []byte("host's"), 0o600),
		os.MkdirAll(filepath.Join(path, "a", "b"), 0o755),
		os.Symlink(filepath.Dir(secret), filepath.Join(path, "out")),
		os.WriteFile(filepath.Join(path, "a", "b", "c"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// A crash after the name was taken away: the next try goes on.
	if err := os.Rename(path, f.leaving("pv-1")); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Remove(cancelled, "pv-1"); !errors.Is(err, context.Canceled) {
		t.Errorf("Remove with an ended context = %v", err)
	}
	if err := f.Remove(t.Context(), "pv-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(secret); err != nil {
		t.Errorf("removal left the volume: %v", err)
	}
	if entries, err := os.ReadDir(f.Dir()); err != nil || len(entries) != 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	if _, err := f.Ensure("pv-1"); err == nil {
		t.Error("a removed folder was made again")
	}
	f.Forget(nil)
	if _, err := f.Ensure("pv-1"); err != nil {
		t.Errorf("once it is forgotten: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", ".removing-x"} {
		if err := f.Remove(t.Context(), name); err == nil {
			t.Errorf("Remove(%q) is accepted", name)
		}
	}
	if err := f.Remove(t.Context(), "never-made"); err != nil {
		t.Errorf("Remove of nothing = %v", err)
	}
}

func TestFSGroupOfLocalVolume(t *testing.T) {
	s := &source{}
	boundTo(s, "data", nil)
	m := newManager(t, s)
	path, err := m.folders.Ensure("pv-data-1")
	if err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "host")
	for _, err := range []error{
		os.WriteFile(outside, nil, 0o600),
		os.Mkdir(filepath.Join(path, "d"), 0o700),
		os.WriteFile(filepath.Join(path, "d", "f"), nil, 0o600),
		os.Symlink(outside, filepath.Join(path, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	pod := claimant("a", "data")
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr.To[int64](4711)}
	if _, err := m.SetUp(t.Context(), pod, Facts{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"": 0o777 | os.ModeSetgid, "d": 0o770 | os.ModeSetgid, "d/f": 0o660} {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		var stat unix.Stat_t
		if err := unix.Stat(filepath.Join(path, name), &stat); err != nil {
			t.Fatal(err)
		}
		if got := info.Mode() &^ os.ModeDir; got != want || stat.Gid != 4711 {
			t.Errorf("%q has mode %v and group %d, want %v and 4711", name, got, stat.Gid, want)
		}
	}
	var stat unix.Stat_t
	if err := unix.Stat(outside, &stat); err != nil || stat.Gid == 4711 || stat.Mode&0o777 != 0o600 {
		t.Errorf("the link's target was changed: group %d, mode %o, %v", stat.Gid, stat.Mode&0o777, err)
	}

	// With OnRootMismatch nothing below a right root is looked at.
	if err := os.Chmod(filepath.Join(path, "d", "f"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, policy := range []corev1.PodFSGroupChangePolicy{corev1.FSGroupChangeOnRootMismatch, corev1.FSGroupChangeAlways} {
		if err := giveToGroup(path, 4711, &policy); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(path, "d", "f"))
		if want := map[corev1.PodFSGroupChangePolicy]os.FileMode{corev1.FSGroupChangeOnRootMismatch: 0o600, corev1.FSGroupChangeAlways: 0o660}[policy]; err != nil || info.Mode() != want {
			t.Errorf("%s: mode %v, %v; want %v", policy, info.Mode(), err, want)
		}
	}
}
