package server

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"gantry.dev/gantry/internal/cli"
	"gantry.dev/gantry/internal/upgrade"
)

// uploadLimit is more than any program is large.
const uploadLimit = 1 << 30

// upgrader takes programs from the node's API, and changes to them. Who may use it was asked before.
type upgrader struct {
	dir     upgrade.Dir
	version string // of this program
	change  *cli.Changing
	log     *slog.Logger
	hash    func() (string, error) // of this program

	mu sync.Mutex // held while a program is taken or begun
}

func newUpgrader(dataDir, version string, change *cli.Changing, log *slog.Logger) *upgrader {
	return &upgrader{
		dir: upgrade.Dir(dataDir), version: version, change: change, log: log,
		hash: sync.OnceValues(func() (string, error) { return upgrade.HashFile("/proc/self/exe") }),
	}
}

// ServeHTTP implements http.Handler.
func (u *upgrader) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	hash := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, upgrade.Path), "/")
	var err error
	switch {
	case hash == "" && r.Method == http.MethodGet:
		err = u.tell(w)
	case !upgrade.ValidHash(hash):
		http.NotFound(w, r)
	case r.Method == http.MethodPut:
		err = u.take(w, r, hash)
	case r.Method == http.MethodPost:
		err = u.begin(w, r, hash)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
	if err != nil {
		http.Error(w, err.Error(), upgradeCode(err))
	}
}

func upgradeCode(err error) int {
	switch {
	case errors.Is(err, upgrade.ErrProgram), errors.Is(err, upgrade.ErrSkew):
		return http.StatusUnprocessableEntity
	case errors.Is(err, upgrade.ErrBusy), errors.Is(err, errNotHere), errors.Is(err, os.ErrNotExist):
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}

// errNotHere says that this process is none that could become another program.
var errNotHere = errors.New("this node's process does not change its program")

func (u *upgrader) tell(w http.ResponseWriter) error {
	hash, err := u.hash()
	if err != nil {
		return err
	}
	n, _, err := u.dir.Read()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(upgrade.Status{ // to one who has gone
		Running: upgrade.Program{Hash: hash, Version: u.version}, Platform: runtime.GOOS + "/" + runtime.GOARCH,
		State: n.State, Failure: n.Failure, Tried: n.Tried, Previous: n.Previous,
	})
	return nil
}

// take keeps a program.
func (u *upgrader) take(w http.ResponseWriter, r *http.Request, hash string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.dir.Has(hash) {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	if err := u.dir.Prune(); err != nil {
		return err
	}
	if err := u.dir.Add(http.MaxBytesReader(w, r.Body, uploadLimit), hash); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// begin changes to a program that was taken.
func (u *upgrader) begin(w http.ResponseWriter, r *http.Request, hash string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.change == nil {
		return errNotHere
	}
	limit := upgrade.DefaultLimit
	if text := r.URL.Query().Get("timeout"); text != "" {
		var err error
		if limit, err = time.ParseDuration(text); err != nil || limit <= 0 {
			http.Error(w, "timeout is no duration", http.StatusBadRequest)
			return nil
		}
	}
	path := u.dir.Path(hash)
	if _, err := os.Stat(path); err != nil {
		return err
	}
	version, err := upgrade.VersionOf(r.Context(), path)
	if err == nil {
		err = upgrade.Compatible(u.version, version)
	}
	if err != nil {
		return err
	}
	next := upgrade.Program{Hash: hash, Version: version}
	if err := u.dir.Begin(upgrade.BeginOptions{Next: next, Running: u.version, Args: u.change.Args, Limit: limit}); err != nil {
		return err
	}
	u.log.Info("changing the program", "from", u.version, "to", version, "hash", hash)
	w.WriteHeader(http.StatusAccepted)
	_ = http.NewResponseController(w).Flush() // before all connections are closed
	u.change.Restart()
	return nil
}
