package upgrade

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gantry.dev/gantry/internal/durable"
)

// noteFile, in the data dir, says which program the machine runs.
const noteFile = "upgrade.json"

// State is how far a change of programs is.
type State string

// The states.
const (
	Trial  State = "trial"  // Current has begun and is not known to work yet
	Done   State = "done"   // Current works
	Failed State = "failed" // the one before Current did not work; Failure says why
)

// Program is one binary of Gantry.
type Program struct {
	Hash    string `json:"hash"` // SHA-256, in hexadecimal digits
	Version string `json:"version"`
}

// Launcher is the file that "gantry up" is started as, as it was when the note was written.
type Launcher struct {
	Path  string    `json:"path"`
	Size  int64     `json:"size"`
	MTime time.Time `json:"mtime"`
}

// Note says which program a machine runs.
type Note struct {
	State    State     `json:"state"`
	Current  Program   `json:"current"`
	Previous Program   `json:"previous"` // to which a trial that fails goes back
	Launcher Launcher  `json:"launcher"`
	Deadline time.Time `json:"deadline"`          // of the trial
	Failure  string    `json:"failure,omitempty"` // why the last trial failed
	Tried    string    `json:"tried,omitempty"`   // the hash of what failed
}

// launcherAt looks at a program's file. One that was replaced since it was started is the file that is there now.
func launcherAt(path string) (Launcher, error) {
	path = strings.TrimSuffix(path, " (deleted)") // proc(5), /proc/pid/exe
	info, err := os.Stat(path)
	if err != nil {
		return Launcher{}, fmt.Errorf("looking at the program %s: %w", path, err)
	}
	return Launcher{Path: path, Size: info.Size(), MTime: info.ModTime().UTC()}, nil
}

func (l Launcher) same(other Launcher) bool {
	return l.Path == other.Path && l.Size == other.Size && l.MTime.Equal(other.MTime)
}

// Dir is a data dir.
type Dir string

// missing reports whether there is no such file, because there is no data dir or something else in its place.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// Read reads the note; false is: there is none.
func (d Dir) Read() (Note, bool, error) {
	text, err := os.ReadFile(filepath.Join(string(d), noteFile))
	if missing(err) {
		return Note{}, false, nil
	}
	var n Note
	if err == nil {
		err = json.Unmarshal(text, &n)
	}
	if err != nil {
		return Note{}, false, fmt.Errorf("reading which program this machine runs: %w", err)
	}
	return n, true, nil
}

func (d Dir) write(n Note) error {
	text, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding which program this machine runs: %w", err)
	}
	return durable.WriteFile(filepath.Join(string(d), noteFile), append(text, '\n'), 0o600)
}

// Path is where a program lies in the data dir.
func (d Dir) Path(hash string) string {
	return filepath.Join(string(d), "bin", folderPrefix+hash[:min(16, len(hash))], "gantry")
}

// Choice is what a start has to do.
type Choice struct {
	Run    string // the program to execute instead of this one; "" is this one
	Forget bool   // the note: somebody has installed another program
	GiveUp bool   // the trial: it has ended without a word
}

// choose says which program a start of self runs. It is pure; there tells whether a program's file is there.
func choose(d Dir, n Note, self Launcher, there func(path string) bool) Choice {
	if self.Path == d.Path(n.Current.Hash) {
		return Choice{}
	}
	if !n.Launcher.same(self) && self.Path != d.Path(n.Previous.Hash) {
		return Choice{Forget: true}
	}
	c := Choice{Run: d.Path(n.Current.Hash)}
	if n.State == Trial {
		c.GiveUp, c.Run = true, d.Path(n.Previous.Hash)
	}
	if c.Run == self.Path || !there(c.Run) {
		c.Run = ""
	}
	return c
}

// Choose says which program a start of the program at self runs. It writes nothing; Settle does.
func (d Dir) Choose(self string) (Choice, error) {
	n, there, err := d.Read()
	if err != nil || !there {
		return Choice{}, err
	}
	launcher, err := launcherAt(self)
	if err != nil {
		return Choice{}, err
	}
	return choose(d, n, launcher, func(path string) bool { _, err := os.Stat(path); return err == nil }), nil
}

// Settle writes down what a choice means.
func (d Dir) Settle(c Choice) error {
	switch {
	case c.Forget:
		if err := os.Remove(filepath.Join(string(d), noteFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forgetting which program this machine ran: %w", err)
		}
	case c.GiveUp:
		return d.GiveUp("it ended before it was ready")
	}
	return nil
}

// OnTrial reports whether the program at self is on trial.
func (d Dir) OnTrial(self string) (bool, error) {
	n, there, err := d.Read()
	return there && n.State == Trial && self == d.Path(n.Current.Hash), err
}

// Confirm ends the trial: the program works.
func (d Dir) Confirm() error {
	n, there, err := d.Read()
	if err != nil || !there || n.State != Trial {
		return err
	}
	n.State, n.Failure, n.Tried = Done, "", ""
	return d.write(n)
}

// GiveUp ends the trial: the machine goes back to the program before. Without a trial it does nothing.
func (d Dir) GiveUp(why string) error {
	n, there, err := d.Read()
	if err != nil || !there || n.State != Trial {
		return err
	}
	n.State, n.Failure, n.Tried, n.Current = Failed, why, n.Current.Hash, n.Previous
	return d.write(n)
}
