//go:build linux

package containerd

import (
	"slices"
	"testing"
)

func TestStartAndExitCodes(t *testing.T) {
	dirs := needNode(t)
	r, _ := startRuntime(t, dirs)
	image := loadBusybox(t, r)
	sb := newSandbox(t, r, dirs, "pod-1", nil)
	for name, tc := range map[string]struct {
		script string
		want   int
		reason string
	}{
		"zero":   {"echo hello; echo $FROM; hostname", 0, "Completed"},
		"seven":  {"echo hello; echo $FROM; hostname; exit 7", 7, "Error"},
		"killed": {"echo hello; echo $FROM; hostname; kill -9 $$", 137, "Error"},
	} {
		t.Run(name, func(t *testing.T) {
			id := runContainer(t, r, sb, image, name, tc.script, nil)
			status := waitExit(t, r, id)
			if name != "killed" && (status.ExitCode != tc.want || status.Reason != tc.reason) {
				t.Errorf("exit code %d, reason %s; want %d, %s", status.ExitCode, status.Reason, tc.want, tc.reason)
			}
			if got, want := logLines(t, status.LogPath), []string{"hello", "image", "host-pod-1"}; !slices.Equal(got, want) {
				t.Errorf("log = %q, want %q", got, want)
			}
			if status.StartedAt.IsZero() || status.FinishedAt.Before(status.StartedAt) || status.PID != 0 {
				t.Errorf("status = %+v", status)
			}
			if err := r.Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		})
	}
	if err := r.RemoveSandbox(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	list, err := r.List(t.Context())
	if err != nil || len(list) != 0 {
		t.Errorf("List after removal = %v, %v", list, err)
	}
}
