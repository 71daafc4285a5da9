package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// newDatabase starts a Postgres for the test, or skips it where there is none. DATABASE_URL in the environment is
// taken instead.
func newDatabase(t *testing.T) *store {
	t.Helper()
	url := os.Getenv("TEST_DATABASE_URL")
	if url == "" {
		url = startPostgres(t)
	}
	s, err := openStore(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	if err := s.await(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func startPostgres(t *testing.T) string {
	t.Helper()
	programs := postgresFolder(t)
	folder, err := os.MkdirTemp("/tmp", "pg-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	attributes := &syscall.SysProcAttr{}
	if os.Getuid() == 0 { // Postgres refuses to run as root
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Skip("Postgres does not run as root, and there is no user nobody")
		}
		uid, _ := strconv.ParseUint(nobody.Uid, 10, 32)
		gid, _ := strconv.ParseUint(nobody.Gid, 10, 32)
		attributes.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(folder, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(folder, "data")
	initdb := exec.CommandContext(t.Context(), filepath.Join(programs, "initdb"), "-D", data, "-U", "tasks", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	initdb.SysProcAttr, initdb.Dir = attributes, folder
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	server := exec.Command(filepath.Join(programs, "postgres"), "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off")
	server.SysProcAttr, server.Dir = attributes, folder
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGQUIT)
		_ = server.Wait()
	})
	return "host=" + folder + " user=tasks dbname=postgres sslmode=disable"
}

func postgresFolder(t *testing.T) string {
	t.Helper()
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path)
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Skip("there is no Postgres here")
	}
	slices.Sort(found)
	return filepath.Dir(found[len(found)-1])
}

func TestStore(t *testing.T) {
	s := newDatabase(t)
	quiet := slog.New(slog.DiscardHandler)
	if err := s.ping(t.Context()); err == nil {
		t.Error("a database without tables is healthy")
	}
	var group sync.WaitGroup
	for range 4 { // two releases at once
		group.Go(func() {
			if err := migrate(t.Context(), s, settingsOf{}, quiet); err != nil {
				t.Errorf("migrate: %v", err)
			}
		})
	}
	group.Wait()
	if err := s.ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Run("tasks", func(t *testing.T) { testTasks(t, s) })
	t.Run("worker", func(t *testing.T) { testWorker(t, s) })
	t.Run("serve", func(t *testing.T) { testServe(t, s) })
}

func testTasks(t *testing.T, s *store) {
	ctx := t.Context()
	first, err := s.create(ctx, " buy\tmilk ")
	if err != nil || first.Title != "buy milk" || first.Done {
		t.Fatalf("create: %+v, %v", first, err)
	}
	second, err := s.create(ctx, "it's; drop table tasks --")
	if err != nil {
		t.Fatal(err)
	}
	yes, no, title := true, false, "buy bread"
	done, err := s.update(ctx, first.ID, change{Done: &yes})
	if err != nil || !done.Done || done.Finished == nil {
		t.Errorf("finish: %+v, %v", done, err)
	}
	again, err := s.update(ctx, first.ID, change{Done: &yes})
	if err != nil || !again.Finished.Equal(*done.Finished) {
		t.Errorf("finish twice: %+v, %v", again, err)
	}
	renamed, err := s.update(ctx, first.ID, change{Title: &title})
	if err != nil || renamed.Title != title || !renamed.Done {
		t.Errorf("rename: %+v, %v", renamed, err)
	}
	tasks, err := s.list(ctx)
	if err != nil || len(tasks) != 2 || tasks[0].ID != second.ID {
		t.Errorf("list: %+v, %v; open ones come first", tasks, err)
	}
	if sums, err := s.totals(ctx); err != nil || sums != (totals{Open: 1, Done: 1}) {
		t.Errorf("totals: %+v, %v", sums, err)
	}
	if back, err := s.update(ctx, first.ID, change{Done: &no}); err != nil || back.Done || back.Finished != nil {
		t.Errorf("not done after all: %+v, %v", back, err)
	}
	if got, err := s.get(ctx, second.ID); err != nil || got != second && !got.Created.Equal(second.Created) {
		t.Errorf("get: %+v, %v, want %+v", got, err, second)
	}
	for name, call := range map[string]func() error{
		"get":    func() error { _, err := s.get(ctx, 999); return err },
		"update": func() error { _, err := s.update(ctx, 999, change{Done: &yes}); return err },
		"remove": func() error { return s.remove(ctx, 999) },
	} {
		if err := call(); !errors.Is(err, errNotFound) {
			t.Errorf("%s of none: %v", name, err)
		}
	}
	if err := errors.Join(s.remove(ctx, first.ID), s.remove(ctx, second.ID)); err != nil {
		t.Error(err)
	}
}

func testWorker(t *testing.T, s *store) {
	ctx := t.Context()
	yes := true
	old, err := s.create(ctx, "old")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.update(ctx, old.ID, change{Done: &yes}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.ExecContext(ctx, `update tasks set finished = now() - interval '2 hours' where id = $1`, old.ID); err != nil {
		t.Fatal(err)
	}
	if _, archived, err := workOnce(ctx, s, 3*time.Hour); err != nil || archived != 0 {
		t.Errorf("too early: %d archived, %v", archived, err)
	}
	d, archived, err := workOnce(ctx, s, time.Hour)
	if err != nil || archived != 1 || d.Created < 1 {
		t.Errorf("%d archived, digest %+v, %v", archived, d, err)
	}
	if tasks, err := s.list(ctx); err != nil || len(tasks) != 0 {
		t.Errorf("list: %+v, %v", tasks, err)
	}
	if days, err := s.digests(ctx); err != nil || len(days) != 1 || days[0] != d {
		t.Errorf("digests: %+v, %v", days, err)
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if err := work(stopped, s, settingsOf{every: time.Hour, archive: time.Hour}, slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("a worker that is told to end: %v", err)
	}
}

// testServe ends the server while a request waits for the database: it is answered.
func testServe(t *testing.T, s *store) {
	lines, writer := io.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	logger := slog.New(slog.NewTextHandler(writer, &slog.HandlerOptions{ReplaceAttr: nil}))
	go func() { ended <- serve(ctx, s, settingsOf{port: "0"}, logger) }()
	line := make([]byte, 1024)
	n, err := lines.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	_, rest, _ := strings.Cut(string(line[:n]), "address=")
	_, port, err := net.SplitHostPort(strings.Trim(strings.Fields(rest)[0], `"`))
	if err != nil {
		t.Fatal(err)
	}
	lock, err := s.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Rollback() }()
	if _, err := lock.ExecContext(t.Context(), `lock table tasks in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		response, err := http.Get("http://127.0.0.1:" + port + "/api/tasks")
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode != http.StatusOK {
				err = errors.New(response.Status)
			}
		}
		answer <- err
	}()
	for waiting := 0; waiting == 0; { // until the request waits for the lock
		if err := s.db.QueryRowContext(t.Context(), `select count(*) from pg_locks where not granted`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-answer, <-ended); err != nil {
		t.Error(err)
	}
}
