package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	for name, tc := range map[string]struct {
		text string // of the licence file; "" is: there is none
		want string // a part of the output, or of the error
		ok   bool
	}{
		"Apache":      {"Apache License\n Version 2.0, January 2004", "1 modules under Apache-2.0", true},
		"MIT":         {"Permission is hereby\ngranted, free of charge, to any person", "under MIT", true},
		"two clauses": {"Redistribution and use in source and binary forms, with or without", "under BSD-2-Clause", true},
		"three":       {"Redistribution and use in source and binary forms. Neither the name of", "under BSD-3-Clause", true},
		"Mozilla":     {"Mozilla Public License Version 2.0 ... the GNU General Public License, Version 2.0", "under MPL-2.0", true},
		"GPL":         {"GNU General Public License\nVersion 3, 29 June 2007", "the licence GPL", false},
		"a choice":    {"at your option, under either:\n* Apache License, version 2.0 (Apache-2.0), OR\n* GNU General Public License, version 2.0", "under Apache-2.0", true},
		"LGPL":        {"GNU LESSER GENERAL PUBLIC LICENSE Version 2.1", "the licence LGPL", false},
		"of its own":  {"All rights reserved.", "no licence file", false},
		"none":        {"", "no licence file", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.text != "" {
				if err := os.WriteFile(filepath.Join(dir, "LICENSE.md"), []byte(tc.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			err := run(strings.NewReader(fmt.Sprintf("example.com/own %s\n\nexample.com/x v1.0.0 %s\nexample.com/x v1.0.0 %s\n", dir, dir, dir)), &out)
			got := out.String()
			if err != nil {
				got += err.Error()
			}
			if (err == nil) != tc.ok || !strings.Contains(got, tc.want) {
				t.Errorf("run: %q; want %q, ok %v", got, tc.want, tc.ok)
			}
		})
	}
	if err := run(strings.NewReader(""), &bytes.Buffer{}); err == nil {
		t.Error("an empty list passes")
	}
}
