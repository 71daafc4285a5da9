package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gantry.dev/gantry/internal/durable"
)

// manCommand writes manual pages. It is hidden: releases and the install script call it.
func (a *app) manCommand() *cobra.Command {
	var clients bool
	cmd := &cobra.Command{
		Use: "man DIR", Short: "Write the manual pages of all commands to a folder", Hidden: true, Args: exactArgs("a folder"),
		Long: "Write the manual pages of all commands to a folder: gantry.1 and one for each command. To read them:\n" +
			"man DIR/gantry.1, or MANPATH with DIR in a folder man1.",
	}
	cmd.Flags().BoolVar(&clients, "clients", false, "those of a program for clients only, without a node's commands")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		root := cmd.Root()
		if clients {
			root = (&app{env: a.env}).root()
		}
		if err := os.MkdirAll(args[0], 0o755); err != nil {
			return fmt.Errorf("make the folder of manual pages: %w", err)
		}
		return a.writeManuals(root, args[0])
	}
	return cmd
}

func (a *app) writeManuals(cmd *cobra.Command, folder string) error {
	name := manualName(cmd) + ".1"
	if err := durable.WriteFile(filepath.Join(folder, name), manual(cmd, a.env.Version), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	for _, sub := range cmd.Commands() {
		if !sub.IsAvailableCommand() {
			continue
		}
		if err := a.writeManuals(sub, folder); err != nil {
			return err
		}
	}
	return nil
}

func manualName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manual is a command's page, in the macros of man(7). The same program writes the same bytes.
func manual(cmd *cobra.Command, version string) []byte {
	cmd.InitDefaultHelpFlag()
	var out bytes.Buffer
	name := manualName(cmd)
	_, _ = fmt.Fprintf(&out, ".TH %q 1 \"\" %q \"Gantry\"\n.nh\n.ad l\n", strings.ToUpper(name), "gantry "+version)
	_, _ = fmt.Fprintf(&out, ".SH NAME\n%s \\- %s\n", roff(name), roff(cmd.Short))
	_, _ = fmt.Fprintf(&out, ".SH SYNOPSIS\n.B %s\n%s\n", roff(cmd.CommandPath()), roff(synopsis(cmd)))
	out.WriteString(".SH DESCRIPTION\n")
	for i, paragraph := range strings.Split(cmp.Or(cmd.Long, cmd.Short+"."), "\n\n") {
		if i > 0 {
			out.WriteString(".PP\n")
		}
		out.WriteString(roff(paragraph) + "\n")
	}
	if cmd.Example != "" {
		_, _ = fmt.Fprintf(&out, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(cmd.Example))
	}
	manualCommands(&out, cmd)
	manualFlags(&out, "OPTIONS", cmd.NonInheritedFlags())
	manualFlags(&out, "OPTIONS OF ALL COMMANDS", cmd.InheritedFlags())
	if !cmd.HasParent() {
		out.WriteString(manualOfAll)
	}
	manualSee(&out, cmd)
	return out.Bytes()
}

// manualOfAll is what holds for every command, on the first page.
const manualOfAll = `.SH ENVIRONMENT
Every flag has a variable: \-\-data\-dir is GANTRY_DATA_DIR.
A flag goes before the variable, and that before the file that \-\-config names.
.SH FILES
.TP
/var/lib/gantry
The data dir: everything that a node keeps.
.TP
~/.config/gantry
The clusters that you logged in to, and what folders were deployed as.
.SH EXIT STATUS
.TP
0
Done.
.TP
1
Something else went wrong; the last line says what.
.TP
2
The command line or a file is wrong.
.TP
3
The build failed.
.TP
4
The release command or a check failed.
.TP
5
The release is not healthy; the one before serves.
.TP
6
The canary was given up.
.TP
7
It still ran at the time\-out.
.TP
8
The cluster cannot be reached, or does not allow it.
.TP
9
A newer release took its place.
.PP
gantry run and gantry exec end with the code of the program that they ran, or 125 if they could not run it.
`

func synopsis(cmd *cobra.Command) string {
	_, arguments, _ := strings.Cut(cmd.Use, " ")
	if cmd.HasAvailableSubCommands() {
		arguments = "COMMAND"
	}
	if cmd.HasAvailableFlags() && !cmd.DisableFlagParsing {
		return strings.TrimSpace("[FLAGS] " + arguments)
	}
	return arguments
}

func manualCommands(out *bytes.Buffer, cmd *cobra.Command) {
	if !cmd.HasAvailableSubCommands() {
		return
	}
	out.WriteString(".SH COMMANDS\n")
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			_, _ = fmt.Fprintf(out, ".TP\n.BR %s (1)\n%s.\n", roff(manualName(sub)), roff(sub.Short))
		}
	}
}

func manualFlags(out *bytes.Buffer, title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	_, _ = fmt.Fprintf(out, ".SH %s\n", title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		word := "--" + f.Name
		if f.Shorthand != "" {
			word = "-" + f.Shorthand + ", " + word
		}
		kind, usage := pflag.UnquoteUsage(f)
		_, _ = fmt.Fprintf(out, ".TP\n\\fB%s\\fR", roff(word))
		if kind != "" {
			_, _ = fmt.Fprintf(out, " \\fI%s\\fR", roff(kind))
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0" && !strings.Contains(usage, "(default") {
			usage += " (default " + f.DefValue + ")"
		}
		_, _ = fmt.Fprintf(out, "\n%s\n", roff(usage))
	})
}

func manualSee(out *bytes.Buffer, cmd *cobra.Command) {
	var see []string
	if cmd.HasParent() {
		see = append(see, manualName(cmd.Parent()))
		for _, beside := range cmd.Parent().Commands() {
			if cmd.Parent().HasParent() && beside != cmd && beside.IsAvailableCommand() {
				see = append(see, manualName(beside))
			}
		}
	} else {
		see = append(see, "kubectl")
	}
	out.WriteString(".SH SEE ALSO\n")
	for i, name := range see {
		end := ","
		if i == len(see)-1 {
			end = ""
		}
		_, _ = fmt.Fprintf(out, ".BR %s (1)%s\n", roff(name), end)
	}
}

// roff writes plain text so that no word of it is taken for a macro.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "’", "'").Replace(text)
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			line = `\&` + line
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}
