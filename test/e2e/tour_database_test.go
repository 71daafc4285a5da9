//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// database gives the tour the addon that the example's gantry.yaml names. The test plays the part that runs databases: a real
// Postgres in the world outside of the machine, the Secret with its address, and word in the App's status that it is ready.
func (tr *tour) database(t *testing.T) {
	t.Helper()
	startPostgres(t, tr.outside)
	tr.kubectl(t, "create", "secret", "generic", "tasks-db", "--from-literal=DATABASE_URL=postgres://tasks@"+net.JoinHostPort(outsideIP, "5432")+"/postgres?sslmode=disable")
	ready := `{"status":{"addons":{"db":{"type":"postgres","ready":true,"secret":"tasks-db"}}}}`
	done := make(chan error, 1)
	go func() { // once deploy has made the App
		done <- poll(3*time.Minute, func() error {
			if r := tr.try(t, "patch", "app", "tasks", "--subresource=status", "--type=merge", "-p", ready); r.code != 0 {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
	}()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Errorf("tell that the database is ready: %v", err)
		}
	})
}

// startPostgres runs this machine's Postgres in a namespace until the test ends, and skips the test where there is none.
func startPostgres(t *testing.T, ns string) {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Skip("there is no Postgres here: apt-get install postgresql")
	}
	slices.Sort(found)
	programs := filepath.Dir(found[len(found)-1])
	nobody, err := user.Lookup("nobody") // Postgres refuses to run as root
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(nobody.Uid)
	gid, _ := strconv.Atoi(nobody.Gid)
	folder, err := os.MkdirTemp(shortTempDir(), "pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	if err := os.Chown(folder, uid, gid); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(folder, "data")
	as := []string{"--net=" + ns, "--setuid=" + nobody.Uid, "--setgid=" + nobody.Gid, "--"}
	initdb := exec.Command("nsenter", append(as, filepath.Join(programs, "initdb"), "-D", data, "-U", "tasks", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")...)
	initdb.Dir = folder
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("host all all 0.0.0.0/0 trust\nlocal all all trust\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	server := exec.Command("nsenter", append(as, filepath.Join(programs, "postgres"), "-D", data, "-k", folder, "-c", "listen_addresses="+outsideIP)...)
	server.Dir = folder
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGQUIT)
		_ = server.Wait()
	})
	dial := dialIn(ns)
	eventually(t, "the database listens", 30*time.Second, func() error {
		conn, err := dial(t.Context(), "tcp", net.JoinHostPort(outsideIP, "5432"))
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
}
