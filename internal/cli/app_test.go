package cli_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"gantry.dev/gantry/internal/platform/deploy/deploytest"
)

// TestApplications runs the commands on applications against the real API, with the platform's part played. The scripts use
// projects of their own names of applications, so they share a cluster.
func TestApplications(t *testing.T) {
	p := deploytest.Start(t)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "app"),
		Setup: func(env *testscript.Env) error {
			work := env.Getenv("WORK")
			env.Setenv("GANTRY_DATA_DIR", work+"/data")
			env.Setenv("HOME", work+"/home")
			env.Setenv("USER", "ann")
			if err := os.MkdirAll(work+"/data", 0o755); err != nil {
				return err
			}
			if err := os.MkdirAll(work+"/home/.config/gantry", 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(work+"/home/.config/gantry/contexts", []byte(p.Kubeconfig), 0o600); err != nil {
				return err
			}
			return os.WriteFile(work+"/data/admin.kubeconfig", []byte(p.Kubeconfig), 0o600)
		},
	})
}
