package upgrade

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"gantry.dev/gantry/internal/durable"
)

// folderPrefix starts the names of programs' folders in DATA/bin.
const folderPrefix = "gantry-"

// versionLimit is how long a program may take to say its version.
const versionLimit = 20 * time.Second

// ErrProgram says that a file is not a program that this machine could run.
var ErrProgram = errors.New("this machine cannot run the program")

// ValidHash reports whether a text is a SHA-256 in hexadecimal digits.
func ValidHash(hash string) bool {
	raw, err := hex.DecodeString(hash)
	return err == nil && len(raw) == sha256.Size && hash == strings.ToLower(hash)
}

// HashFile is the hash of a file.
func HashFile(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// Has reports whether a program lies in the data dir.
func (d Dir) Has(hash string) bool {
	_, err := os.Stat(d.Path(hash))
	return err == nil
}

// Add keeps a program that must have the hash. It appears in one step.
func (d Dir) Add(r io.Reader, hash string) (err error) {
	target := d.Path(hash)
	folder := filepath.Dir(target)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("keeping a program: %w", err)
	}
	out, err := os.CreateTemp(folder, ".new-")
	if err != nil {
		return fmt.Errorf("keeping a program: %w", err)
	}
	defer func() { _ = os.Remove(out.Name()) }() // nothing, once it was moved
	defer func() { _ = out.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, sum), r); err != nil {
		return fmt.Errorf("keeping a program: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != hash {
		return fmt.Errorf("%w: its SHA-256 is %s, want %s", ErrProgram, got, hash)
	}
	err = errors.Join(out.Chmod(0o755), out.Sync(), out.Close())
	if err == nil {
		err = os.Rename(out.Name(), target)
	}
	if err == nil {
		err = errors.Join(durable.SyncDir(folder), durable.SyncDir(filepath.Dir(folder)))
	}
	if err != nil {
		return fmt.Errorf("keeping a program: %w", err)
	}
	return nil
}

// AddRunning keeps the program of this process and returns its hash, whatever became of its file.
func (d Dir) AddRunning() (string, error) {
	const running = "/proc/self/exe"
	hash, err := HashFile(running)
	if err != nil {
		return "", fmt.Errorf("reading this program: %w", err)
	}
	if d.Has(hash) {
		return hash, nil
	}
	file, err := os.Open(running)
	if err != nil {
		return "", fmt.Errorf("reading this program: %w", err)
	}
	defer func() { _ = file.Close() }()
	return hash, d.Add(file, hash)
}

// Prune removes all programs but those of the note.
func (d Dir) Prune() error {
	n, there, err := d.Read()
	if err != nil || !there {
		return err
	}
	folders, err := filepath.Glob(filepath.Join(string(d), "bin", folderPrefix+"*", "gantry"))
	if err != nil {
		return fmt.Errorf("removing old programs: %w", err)
	}
	for _, path := range folders {
		if path == d.Path(n.Current.Hash) || n.Previous.Hash != "" && path == d.Path(n.Previous.Hash) {
			continue
		}
		if err := os.RemoveAll(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing old programs: %w", err)
		}
	}
	return nil
}

// VersionOf asks a program for its version. One that does not say it cannot run here.
func VersionOf(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "version", "--json").Output()
	if err != nil {
		return "", fmt.Errorf("%w: asking it for its version: %w", ErrProgram, err)
	}
	var said struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal(out, &said); err != nil || said.Version == "" {
		return "", fmt.Errorf("%w: it is not gantry: it says %.100q for its version", ErrProgram, out)
	}
	return said.Version, nil
}
