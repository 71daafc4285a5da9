package main

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrationLock is the advisory lock that keeps two migrations from running at once.
const migrationLock = 7_201_844

// migration is one step of the tables. Its name is its file's.
type migration struct{ name, text string }

func migrations() ([]migration, error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql")
	if err != nil {
		return nil, fmt.Errorf("list the migrations: %w", err)
	}
	slices.Sort(names)
	var all []migration
	for _, name := range names {
		text, err := migrationFiles.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		all = append(all, migration{name, string(text)})
	}
	return all, nil
}

// migrate applies the migrations that the database has not seen, each in a transaction.
func migrate(ctx context.Context, s *store, _ settingsOf, logger *slog.Logger) error {
	all, err := migrations()
	if err != nil {
		return err
	}
	if err := s.await(ctx); err != nil {
		return err
	}
	conn, err := s.db.Conn(ctx) // the lock belongs to a connection
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.ExecContext(ctx, `select pg_advisory_lock($1)`, migrationLock); err != nil {
		return fmt.Errorf("wait for other migrations: %w", err)
	}
	defer func() {
		_, _ = conn.ExecContext(context.WithoutCancel(ctx), `select pg_advisory_unlock($1)`, migrationLock)
	}()
	if _, err := conn.ExecContext(ctx, `create table if not exists migrations (name text primary key, applied timestamptz not null default now())`); err != nil {
		return fmt.Errorf("make the table of migrations: %w", err)
	}
	for _, m := range all {
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return fmt.Errorf("begin %s: %w", m.name, err)
		}
		var seen bool
		err = tx.QueryRowContext(ctx, `select exists (select from migrations where name = $1)`, m.name).Scan(&seen)
		if err == nil && !seen {
			if _, err = tx.ExecContext(ctx, m.text); err == nil {
				_, err = tx.ExecContext(ctx, `insert into migrations (name) values ($1)`, m.name)
			}
		}
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			_ = tx.Rollback()
			return fmt.Errorf("apply %s: %w", m.name, err)
		}
		if !seen {
			logger.Info("migrated", "migration", m.name)
		}
	}
	logger.Info("the tables are up to date", "migrations", len(all))
	return nil
}
