package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// busybox is the shell behind ours.
const busybox = "/bin/busybox"

// ours tells busybox's shell of nc in here: by itself it takes the one it has built in.
const ours = "nc() { /bin/nc \"$@\"; }\n"

// shell becomes busybox's shell. Debian's drops variables whose names are no identifiers; when there
// are such and the script is one plain command, shell becomes that command itself, as a shell does in the end.
func shell(args []string) error {
	args = slices.Clone(args)
	if i := slices.Index(args, "-c") + 1; i > 0 && i < len(args) {
		if words := plain(args[i]); len(words) > 0 && slices.ContainsFunc(os.Environ(), odd) {
			if path, err := exec.LookPath(words[0]); err == nil {
				return become(path, words)
			}
		}
		args[i] = withTools(args[i])
	}
	return become(busybox, append([]string{"sh"}, args...))
}

// withTools is a script that finds the programs in here.
func withTools(script string) string {
	if regexp.MustCompile(`\bnc `).MatchString(script) {
		return ours + script
	}
	return script
}

func become(path string, args []string) error {
	if err := syscall.Exec(path, args, os.Environ()); err != nil {
		return fmt.Errorf("become %s: %w", path, err)
	}
	return nil
}

// odd reports whether an entry of the environment has a name that is no identifier.
func odd(entry string) bool {
	name, _, _ := strings.Cut(entry, "=")
	return !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(name)
}

// plain is a script that is one command of words that mean themselves; nil if it is more.
func plain(script string) []string {
	if !regexp.MustCompile(`^ *[A-Za-z0-9_./-]+( +[A-Za-z0-9_./-]+)* *$`).MatchString(script) {
		return nil
	}
	return strings.Fields(script)
}
