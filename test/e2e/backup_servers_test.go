//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRestoreThenJoin takes a backup of a server that is lost afterwards, restores it, and makes it three servers again. Then
// the one that makes the scheduled backups dies, and another goes on with them. A backup that is killed leaves nothing half.
func TestRestoreThenJoin(t *testing.T) {
	if os.Getenv(tourEnv) == "" {
		t.Skipf("%s is not set; \"make tour\" sets it", tourEnv)
	}
	m := newMachines(t, 3)
	first := m.node[0]
	first.up(t)
	first.kubectl(t, "create", "configmap", "before", "--from-literal=word=swordfish")
	folder := t.TempDir()
	key, file := filepath.Join(folder, "key"), filepath.Join(folder, "one.backup")
	first.mustGantry(t, "backup", "create", "--recovery-key-file", key, file)
	killedBackups(t, first, key, filepath.Join(folder, "killed"))
	first.mustGantry(t, "down", "--purge", "--yes")

	first.mustGantry(t, "restore", "--node-name", m.name(0), "--recovery-key-file", key, file)
	first.up(t)
	for i := 1; i < 3; i++ {
		address, token := m.token(t, 0, "--server")
		m.node[i].up(t, "--join", address, "--server", "--token", token)
	}
	eventually(t, "three servers behind default/kubernetes", 30*time.Second, func() error {
		got := m.node[2].kubectl(t, "get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets[*].addresses[*].ip}")
		if len(strings.Fields(got)) != 3 {
			return fmt.Errorf("they are %s", got)
		}
		return nil
	})
	for i, node := range m.node {
		if word := node.kubectl(t, "get", "configmap", "before", "-o", "jsonpath={.data.word}"); word != "swordfish" {
			t.Errorf("server %d reads %q", i, word)
		}
	}
	m.scheduleGoesOn(t, filepath.Join(folder, "scheduled"))
}

// killedBackups kills the command and the server while they write backups: each file that there is in the end is whole.
func killedBackups(t *testing.T, c *cluster, key, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, after := range []time.Duration{50, 200, 500, 1000, 2000, 4000} {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := c.command(ctx, filepath.Join(c.bin, "gantry"), "--data-dir", c.dir, "backup", "create", filepath.Join(dir, fmt.Sprintf("%d.backup", i)))
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGKILL) }
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after*time.Millisecond, func() {
			if i%2 == 0 {
				cancel()
			} else {
				_ = syscall.Kill(c.pid(t), syscall.SIGKILL)
			}
		})
		_ = cmd.Wait()
		timer.Stop()
		cancel()
		if i%2 == 1 {
			c.up(t) // nothing, if the backup was done before
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".backup" {
			t.Errorf("a killed backup left %s", entry.Name())
			continue
		}
		if r := c.gantry(t, "", "backup", "verify", "--recovery-key-file", key, filepath.Join(dir, entry.Name())); r.code != 0 {
			t.Errorf("%s is not whole: %v", entry.Name(), r)
		}
	}
	t.Logf("of 6 backups that were killed %d were done before", len(entries))
}

// scheduleGoesOn kills the machine that makes the scheduled backups: the next one is made by the server that leads then, in the
// directory of that name on its own disk. (These machines share one disk, so all lie side by side here.)
func (m *machines) scheduleGoesOn(t *testing.T, dir string) {
	t.Helper()
	leader := m.leader(t, 0)
	at := m.node[(leader+1)%3]
	at.mustGantry(t, "backup", "schedule", "--keep", "5", "* * * * *", dir)
	made := func(n int, what string) {
		t.Helper()
		eventually(t, what, 3*time.Minute, func() error {
			r := at.gantry(t, "", "backup", "ls", "--json")
			var items []struct{ Name string }
			if err := json.Unmarshal([]byte(r.stdout), &items); err != nil || len(items) < n {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
	}
	made(1, "a scheduled backup is made")
	m.cut(t, leader)
	m.signal(leader, syscall.SIGKILL)
	made(2, "another is made after the leader died")
	if parts, _ := filepath.Glob(filepath.Join(dir, ".*")); len(parts) > 0 {
		t.Errorf("halves are left: %q", parts)
	}
	at.mustGantry(t, "backup", "schedule", "off")
	m.mend(t, leader)
	m.node[leader].up(t)
}
