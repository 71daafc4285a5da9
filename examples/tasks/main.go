// Command tasks is a task list: a page and a JSON API before Postgres, with a worker that tidies up.
//
//	tasks serve     answers requests on $PORT (8080)
//	tasks work      archives what is done and writes the digest of each day
//	tasks migrate   brings the database to the newest version of its tables
//
// DATABASE_URL says where the database is.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// version is what the page shows. A change of it is the smallest new release.
const version = "1.0"

func main() {
	logger := slog.New(slog.NewJSONHandler(os.Stdout, nil)).With("version", version)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, logger); err != nil {
		logger.Error("ended", "error", err.Error())
		os.Exit(1)
	}
}

// run is the program less what belongs to the process.
func run(ctx context.Context, args []string, getenv func(string) string, logger *slog.Logger) error {
	command := "serve"
	if len(args) > 0 {
		command = args[0]
	}
	settings, err := readSettings(getenv)
	if err != nil {
		return err
	}
	var do func(context.Context, *store, settingsOf, *slog.Logger) error
	switch command {
	case "serve":
		do = serve
	case "work":
		do = work
	case "migrate":
		do = migrate
	default:
		return fmt.Errorf("there is no command %q: serve, work or migrate", command)
	}
	s, err := openStore(settings.database)
	if err != nil {
		return err
	}
	defer s.close()
	return do(ctx, s, settings, logger)
}

// settingsOf is what the environment says.
type settingsOf struct {
	database string
	port     string
	archive  time.Duration // how long a finished task stays in the list
	every    time.Duration // between two rounds of the worker
}

func readSettings(getenv func(string) string) (settingsOf, error) {
	s := settingsOf{database: getenv("DATABASE_URL"), port: "8080", archive: 24 * time.Hour, every: 30 * time.Second}
	if s.database == "" {
		return s, errors.New("DATABASE_URL is not set: it says where Postgres is, such as postgres://user:password@host/tasks")
	}
	if port := getenv("PORT"); port != "" {
		s.port = port
	}
	for name, into := range map[string]*time.Duration{"ARCHIVE_AFTER": &s.archive, "WORK_EVERY": &s.every} {
		text := getenv(name)
		if text == "" {
			continue
		}
		value, err := time.ParseDuration(text)
		if err != nil || value <= 0 {
			return s, fmt.Errorf("%s is %q, want a duration such as 24h", name, text)
		}
		*into = value
	}
	return s, nil
}
