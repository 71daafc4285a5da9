package upgrade

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gantry.dev/gantry/internal/durable"
)

// versionFile, in the data dir, says which programs wrote it.
const versionFile = "version.json"

// skew is how many minor versions two programs of one cluster, or of one data dir, may be apart.
const skew = 1

// ErrSkew says that two versions are too far apart.
var ErrSkew = errors.New("the versions are more than one minor version apart")

// minorOf reads "v1.4.0-rc1" as 1 and 4; false is: it is no version, such as "dev".
func minorOf(version string) (major, minor int, ok bool) {
	rest, found := strings.CutPrefix(version, "v")
	parts := strings.SplitN(rest, ".", 3)
	if !found || len(parts) != 3 {
		return 0, 0, false
	}
	major, errMajor := strconv.Atoi(parts[0])
	minor, errMinor := strconv.Atoi(parts[1])
	return major, minor, errMajor == nil && errMinor == nil && major >= 0 && minor >= 0
}

// Compatible returns ErrSkew when two programs cannot be parts of one cluster. What is no version is not compared.
func Compatible(a, b string) error {
	aMajor, aMinor, aKnown := minorOf(a)
	bMajor, bMinor, bKnown := minorOf(b)
	if !aKnown || !bKnown || aMajor == bMajor && aMinor-bMinor <= skew && bMinor-aMinor <= skew {
		return nil
	}
	return fmt.Errorf("%w: %s and %s", ErrSkew, a, b)
}

// older reports whether a is of an older minor version than b.
func older(a, b string) bool {
	aMajor, aMinor, aKnown := minorOf(a)
	bMajor, bMinor, bKnown := minorOf(b)
	return aKnown && bKnown && (aMajor < bMajor || aMajor == bMajor && aMinor < bMinor)
}

// written is the content of versionFile.
type written struct {
	Newest string `json:"newest"` // that ever wrote here
	Last   string `json:"last"`   // that wrote here
}

func readWritten(dataDir string) (written, error) {
	path := filepath.Join(dataDir, versionFile)
	text, err := os.ReadFile(path)
	if missing(err) {
		return written{}, nil
	}
	var w written
	if err == nil {
		err = json.Unmarshal(text, &w)
	}
	if err != nil {
		return written{}, fmt.Errorf("reading which version wrote %s: %w", dataDir, err)
	}
	return w, nil
}

// CheckData returns ErrSkew when a program is too old for what a newer one wrote into the data dir. It writes nothing.
func CheckData(dataDir, version string) error {
	w, err := readWritten(dataDir)
	if err != nil || !older(version, w.Newest) {
		return err
	}
	if err := Compatible(version, w.Newest); err != nil {
		return fmt.Errorf("%s was written by gantry %s, and this is %s; start it with a version of at most one minor before: %w", dataDir, w.Newest, version, err)
	}
	return nil
}

// NoteData notes that a program writes the data dir from now on.
func NoteData(dataDir, version string) error {
	before, err := readWritten(dataDir)
	if err != nil {
		return err
	}
	now := written{Newest: before.Newest, Last: version}
	if _, _, known := minorOf(version); known && !older(version, before.Newest) || before.Newest == "" {
		now.Newest = version
	}
	if now == before {
		return nil
	}
	text, err := json.Marshal(now)
	if err != nil {
		return fmt.Errorf("encoding which version writes the data dir: %w", err)
	}
	return durable.WriteFile(filepath.Join(dataDir, versionFile), append(text, '\n'), 0o600)
}
