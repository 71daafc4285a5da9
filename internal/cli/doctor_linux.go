package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) doctorCommand() *cobra.Command {
	var fix bool
	cmd := &cobra.Command{
		Use: "doctor", Short: "Look for what would keep a cluster on this machine from working", GroupID: groupMachine, Args: exactArgs(),
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "apply the cures, asking before each")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.load(cmd, false)
		if err != nil {
			return err
		}
		findings, err := a.backend.Doctor(cmd.Context(), c)
		if err != nil {
			return err
		}
		if a.json {
			if findings == nil {
				findings = []Finding{}
			}
			if err := a.printJSON(findings); err != nil {
				return err
			}
		}
		left := 0
		for _, f := range findings {
			if !a.json {
				if err := a.printf("problem: %s\n   cure: %s\n", f.Problem, f.Cure); err != nil {
					return err
				}
			}
			if !fix || f.Fix == nil {
				left++
				continue
			}
			if err := a.confirm("apply the cure: " + f.Cure); err != nil {
				return err
			}
			if err := f.Fix(cmd.Context()); err != nil {
				return fmt.Errorf("apply the cure %q: %w", f.Cure, err)
			}
			_, _ = fmt.Fprintln(a.env.Stderr, "done")
		}
		if left > 0 && !fix {
			return fmt.Errorf("%d problems; \"gantry doctor --fix\" applies the cures", left)
		}
		if left > 0 {
			return errors.New("what is left needs a person")
		}
		if len(findings) == 0 && !a.json {
			return a.printf("no problems found\n")
		}
		return nil
	}
	return cmd
}
