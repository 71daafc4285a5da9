package cli

import (
	"context"
	"io"
	"log/slog"

	"gantry.dev/gantry/internal/backup"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/lifecycle"
)

// Backups works on backups without a cluster; all members are required.
type Backups struct {
	// Restore makes a data dir of a backup. The caller holds the data dir's lock.
	Restore func(ctx context.Context, run RestoreRequest) (RestoreResult, error)
	// Verify starts a backup in a scratch place and says what is there.
	Verify func(ctx context.Context, run VerifyRequest) (VerifyResult, error)
}

// RestoreRequest says what to restore and where to.
type RestoreRequest struct {
	Config config.Config
	Source io.Reader
	Secret string // half of the recovery key
	Steps  *lifecycle.Steps
	Logger *slog.Logger
}

// RestoreResult says what was restored.
type RestoreResult struct {
	Manifest backup.Manifest `json:"manifest"`
	NodeName string          `json:"nodeName"` // of this machine
	Revision int64           `json:"revision"` // that the cluster goes on from
	Moved    []string        `json:"moved"`    // what was changed because the machine is another
}

// VerifyRequest says what to verify.
type VerifyRequest struct {
	Source  io.Reader
	Secret  string
	Scratch string // folder in which a folder is made and removed again; "" is the system's for temporary files
	Steps   *lifecycle.Steps
	Logger  *slog.Logger
}

// VerifyResult says what a backup holds.
type VerifyResult struct {
	Manifest backup.Manifest `json:"manifest"`
	Objects  map[string]int  `json:"objects"` // by resource and group
}
