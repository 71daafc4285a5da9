package cli

import (
	"runtime"

	"github.com/spf13/cobra"
)

// versionDocument is what "version --json" prints.
type versionDocument struct {
	Version    string    `json:"version"`
	Commit     string    `json:"commit,omitempty"`
	Go         string    `json:"go"`
	Platform   string    `json:"platform"`
	Components []Version `json:"components,omitempty"`
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of every part", GroupID: groupMachine, Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			doc := versionDocument{Version: a.env.Version, Commit: a.env.Commit, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			if a.backend.Versions != nil {
				doc.Components = a.backend.Versions()
			}
			if a.json {
				return a.printJSON(doc)
			}
			rows := [][]string{{"gantry", doc.Version}}
			if doc.Commit != "" {
				rows = append(rows, []string{"commit", doc.Commit})
			}
			rows = append(rows, []string{"go", doc.Go}, []string{"platform", doc.Platform})
			for _, c := range doc.Components {
				rows = append(rows, []string{c.Name, c.Version})
			}
			return a.printTable(rows)
		},
	}
}
