package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) doctorCommand() *cobra.Command {
	var fix bool
	cmd := &cobra.Command{
		Use: "doctor", Short: "Examine this machine and say what would keep a cluster on it from working", GroupID: groupMachine, Args: exactArgs(),
		Long: "Examine this machine: the kernel, cgroups, firewalls, ports, disk, clock and memory. Each finding that is not ok says what\n" +
			"helps. It writes a few files of 4 KB to the disk and changes nothing. The exit code is 1 if there is a problem; warnings leave it 0.",
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "apply the cures that are commands, asking before each")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.load(cmd, false)
		if err != nil {
			return err
		}
		findings, err := a.backend.Doctor(cmd.Context(), c)
		if err != nil {
			return err
		}
		if err := a.printFindings(findings); err != nil {
			return err
		}
		if fix {
			return a.fixAll(cmd.Context(), findings)
		}
		problems, curable := 0, 0
		for _, f := range findings {
			if f.Level == LevelProblem {
				problems++
			}
			if f.Level != LevelOK && f.Fix != nil {
				curable++
			}
		}
		switch {
		case problems > 0 && curable > 0:
			return fmt.Errorf("%s; \"gantry doctor --fix\" applies what can be done by a command, and asks before", countOf(problems, "problem"))
		case problems > 0:
			return fmt.Errorf("%s", countOf(problems, "problem"))
		}
		return nil
	}
	return cmd
}

func countOf(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// printFindings prints a line for each, and what helps below it.
func (a *app) printFindings(findings []Finding) error {
	if a.json {
		return a.printJSON(append([]Finding{}, findings...))
	}
	width := 0
	for _, f := range findings {
		width = max(width, len(f.Check))
	}
	for _, f := range findings {
		if err := a.printf("%-7s  %-*s  %s\n", f.Level, width, f.Check, f.Says); err != nil {
			return err
		}
		if f.Cure == "" {
			continue
		}
		if err := a.printf("%s→ %s\n", strings.Repeat(" ", width+11), f.Cure); err != nil {
			return err
		}
	}
	return nil
}

// fixAll applies the cures that a person says yes to.
func (a *app) fixAll(ctx context.Context, findings []Finding) error {
	left := 0
	for _, f := range findings {
		if f.Level == LevelOK {
			continue
		}
		if f.Fix == nil {
			if f.Level == LevelProblem {
				left++
			}
			continue
		}
		yes, err := a.ask("Apply the cure: " + f.Cure)
		if err != nil {
			return err
		}
		if !yes {
			left++
			continue
		}
		if err := f.Fix(ctx); err != nil {
			return fmt.Errorf("apply the cure of %s: %w", f.Check, err)
		}
		_, _ = fmt.Fprintf(a.env.Stderr, "%s: done\n", f.Check)
	}
	if left > 0 {
		return fmt.Errorf("%s left for a person to cure", countOf(left, "problem"))
	}
	return nil
}
