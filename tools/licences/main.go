// Command licences checks that every module that is linked into Gantry's programs has a licence that allows it to be given away in
// one binary. It reads lines "PATH VERSION DIR", as "go list -deps" prints them, and looks at the licence files in DIR.
//
//	go list -deps -f '{{with .Module}}{{.Path}} {{.Version}} {{.Dir}}{{end}}' ./cmd/... | licences
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "licences:", err)
		os.Exit(1)
	}
}

// allowed are the licences that ask for no more than that their text goes along, or (MPL-2.0) that changed files stay open; we
// change none. What is not among them fails the check: decide, then add it here with the reason.
var allowed = []string{"Apache-2.0", "MIT", "BSD-3-Clause", "BSD-2-Clause", "ISC", "MPL-2.0", "Unlicense", "CC0-1.0"}

func run(in io.Reader, out io.Writer) error {
	count, seen := map[string]int{}, map[string]bool{}
	var errs []error
	for lines := bufio.NewScanner(in); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 2 || len(fields) == 3 && strings.HasPrefix(fields[0], "gantry.dev/gantry") { // of this repository
			continue
		}
		if len(fields) != 3 {
			if len(fields) > 0 {
				errs = append(errs, fmt.Errorf("%q is not PATH VERSION DIR", lines.Text()))
			}
			continue
		}
		if seen[fields[0]] {
			continue
		}
		seen[fields[0]] = true
		licence, err := licenceOf(fields[2])
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s %s: %w", fields[0], fields[1], err))
		case !slices.Contains(allowed, licence):
			errs = append(errs, fmt.Errorf("%s %s has the licence %s, which is not on the list of tools/licences", fields[0], fields[1], licence))
		default:
			count[licence]++
		}
	}
	if len(seen) == 0 {
		errs = append(errs, errors.New("no module was named"))
	}
	for _, licence := range allowed {
		if count[licence] > 0 {
			_, _ = fmt.Fprintf(out, "licences: %3d modules under %s\n", count[licence], licence)
		}
	}
	return errors.Join(errs...)
}

// licenceOf reads the files that a module's licence may be in.
func licenceOf(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, entry := range entries {
		name := strings.ToUpper(entry.Name())
		if entry.IsDir() || !strings.HasPrefix(name, "LICENSE") && !strings.HasPrefix(name, "LICENCE") && !strings.HasPrefix(name, "COPYING") && !strings.HasPrefix(name, "UNLICENSE") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return "", err
		}
		if licence := classify(string(text)); licence != "" {
			return licence, nil
		}
	}
	return "", errors.New("no licence file that is known")
}

// classify knows a licence by its own words. Those that would bind the whole program come first: a file may quote several.
func classify(text string) string {
	text = strings.ToLower(strings.Join(strings.Fields(text), " "))
	for _, l := range []struct{ words, licence string }{
		{"at your option, under either: * apache license, version 2.0", "Apache-2.0"}, // spdx/tools-golang: or the GNU licence
		{"gnu affero general public license version", "AGPL"},
		{"gnu lesser general public license version", "LGPL"},
		{"gnu general public license version", "GPL"},
		{"apache license version 2.0", "Apache-2.0"},
		{"apache license, version 2.0", "Apache-2.0"},
		{"mozilla public license version 2.0", "MPL-2.0"},
		{"mozilla public license, version 2.0", "MPL-2.0"},
		{"permission is hereby granted, free of charge", "MIT"},
		{"permission to use, copy, modify, and/or distribute this software for any purpose", "ISC"},
		{"permission to use, copy, modify, and distribute this software for any purpose", "ISC"},
		{"this is free and unencumbered software released into the public domain", "Unlicense"},
		{"cc0 1.0 universal", "CC0-1.0"},
	} {
		if strings.Contains(text, l.words) {
			// The Mozilla licence names the GNU licences as others that files may have; it is none of them.
			if strings.Contains(l.licence, "GPL") && strings.Contains(text, "mozilla public license") {
				continue
			}
			return l.licence
		}
	}
	if strings.Contains(text, "redistribution and use in source and binary forms") {
		if strings.Contains(text, "neither the name") || strings.Contains(text, "names of its contributors") {
			return "BSD-3-Clause"
		}
		return "BSD-2-Clause"
	}
	return ""
}
