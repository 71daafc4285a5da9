package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	_ "github.com/lib/pq" // the driver named postgres
)

const (
	maxTitle  = 200 // letters of a title
	listLimit = 200 // tasks of one page
)

// Errors that a caller answers for.
var (
	errNotFound = errors.New("there is no such task")
	errTitle    = errors.New("a title has 1 to 200 letters")
)

// task is one row of the list.
type task struct {
	ID       int64      `json:"id"`
	Title    string     `json:"title"`
	Done     bool       `json:"done"`
	Created  time.Time  `json:"created"`
	Finished *time.Time `json:"finished,omitempty"`
}

// change is what an update sets; nil is left as it is.
type change struct {
	Title *string `json:"title"`
	Done  *bool   `json:"done"`
}

// totals are the numbers above the list.
type totals struct {
	Open     int `json:"open"`
	Done     int `json:"done"`
	Archived int `json:"archived"`
}

// store keeps tasks in Postgres.
type store struct{ db *sql.DB }

// openStore connects to nothing yet.
func openStore(url string) (*store, error) {
	db, err := sql.Open("postgres", url)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	db.SetMaxOpenConns(10)
	db.SetMaxIdleConns(10)
	db.SetConnMaxIdleTime(time.Minute)
	return &store{db}, nil
}

func (s *store) close() { _ = s.db.Close() }

// await waits until the database answers, for a database that starts beside us.
func (s *store) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := s.db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connect to the database: %w", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// ping says whether the database answers and has our tables.
func (s *store) ping(ctx context.Context) error {
	_, err := s.db.ExecContext(ctx, `select from tasks limit 1`)
	return err
}

const columns = `id, title, done, created, finished`

func scan(row interface{ Scan(...any) error }) (t task, err error) {
	err = row.Scan(&t.ID, &t.Title, &t.Done, &t.Created, &t.Finished)
	if errors.Is(err, sql.ErrNoRows) {
		err = errNotFound
	}
	return t, err
}

// list returns the newest tasks that are not archived, open ones first.
func (s *store) list(ctx context.Context) ([]task, error) {
	rows, err := s.db.QueryContext(ctx, `select `+columns+` from tasks where archived is null order by done, id desc limit $1`, listLimit)
	if err != nil {
		return nil, fmt.Errorf("list the tasks: %w", err)
	}
	defer func() { _ = rows.Close() }()
	tasks := []task{}
	for rows.Next() {
		t, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("read a task: %w", err)
		}
		tasks = append(tasks, t)
	}
	return tasks, rows.Err()
}

func (s *store) totals(ctx context.Context) (t totals, err error) {
	err = s.db.QueryRowContext(ctx, `select count(*) filter (where not done and archived is null),
		count(*) filter (where done and archived is null), count(archived) from tasks`).Scan(&t.Open, &t.Done, &t.Archived)
	return t, err
}

func (s *store) get(ctx context.Context, id int64) (task, error) {
	return scan(s.db.QueryRowContext(ctx, `select `+columns+` from tasks where id = $1`, id))
}

func (s *store) create(ctx context.Context, title string) (task, error) {
	title, err := checkTitle(title)
	if err != nil {
		return task{}, err
	}
	return scan(s.db.QueryRowContext(ctx, `insert into tasks (title) values ($1) returning `+columns, title))
}

func (s *store) update(ctx context.Context, id int64, c change) (task, error) {
	if c.Title != nil {
		title, err := checkTitle(*c.Title)
		if err != nil {
			return task{}, err
		}
		c.Title = &title
	}
	return scan(s.db.QueryRowContext(ctx, `update tasks set title = coalesce($2, title), done = coalesce($3, done),
		finished = case when not coalesce($3, done) then null else coalesce(finished, now()) end,
		archived = case when not coalesce($3, done) then null else archived end
		where id = $1 returning `+columns, id, c.Title, c.Done))
}

func (s *store) remove(ctx context.Context, id int64) error {
	result, err := s.db.ExecContext(ctx, `delete from tasks where id = $1`, id)
	if err != nil {
		return fmt.Errorf("delete task %d: %w", id, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(errNotFound, err)
	}
	return nil
}

// archive takes tasks out of the list that are done for longer than after, and returns how many.
func (s *store) archive(ctx context.Context, after time.Duration) (int64, error) {
	result, err := s.db.ExecContext(ctx, `update tasks set archived = now()
		where done and archived is null and finished < now() - make_interval(secs => $1)`, after.Seconds())
	if err != nil {
		return 0, fmt.Errorf("archive: %w", err)
	}
	return result.RowsAffected()
}

// digest is what happened on a day.
type digest struct {
	Day      string `json:"day"`
	Created  int    `json:"created"`
	Finished int    `json:"finished"`
}

// writeDigest counts today's tasks. Twice equals once, and two workers do not disturb each other.
func (s *store) writeDigest(ctx context.Context) (d digest, err error) {
	err = s.db.QueryRowContext(ctx, `insert into digests (day, created, finished)
		select current_date, count(*) filter (where created >= current_date), count(*) filter (where finished >= current_date) from tasks
		on conflict (day) do update set created = excluded.created, finished = excluded.finished
		returning to_char(day, 'YYYY-MM-DD'), created, finished`).Scan(&d.Day, &d.Created, &d.Finished)
	if err != nil {
		err = fmt.Errorf("write the digest: %w", err)
	}
	return d, err
}

// digests are the last days', the newest first.
func (s *store) digests(ctx context.Context) ([]digest, error) {
	rows, err := s.db.QueryContext(ctx, `select to_char(day, 'YYYY-MM-DD'), created, finished from digests order by day desc limit 14`)
	if err != nil {
		return nil, fmt.Errorf("list the digests: %w", err)
	}
	defer func() { _ = rows.Close() }()
	all := []digest{}
	for rows.Next() {
		var d digest
		if err := rows.Scan(&d.Day, &d.Created, &d.Finished); err != nil {
			return nil, fmt.Errorf("read a digest: %w", err)
		}
		all = append(all, d)
	}
	return all, rows.Err()
}

func checkTitle(title string) (string, error) {
	title = strings.Join(strings.Fields(title), " ")
	if n := utf8.RuneCountInString(title); n < 1 || n > maxTitle || !utf8.ValidString(title) || strings.ContainsRune(title, 0) {
		return "", errTitle
	}
	return title, nil
}
