package upgrade

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCompatible(t *testing.T) {
	for _, test := range []struct {
		a, b string
		good bool
	}{
		{"v1.4.0", "v1.4.9", true},
		{"v1.4.0", "v1.5.0-rc1", true},
		{"v1.5.0", "v1.4.0", true},
		{"v1.4.0", "v1.6.0", false},
		{"v2.0.0", "v1.9.0", false},
		{"dev", "v1.9.0", true},
		{"v0.0.0-abcdef123456-dirty", "v0.0.0-fedcba654321", true},
		{"", "v1.2.3", true},
	} {
		if err := Compatible(test.a, test.b); (err == nil) != test.good || err != nil && !errors.Is(err, ErrSkew) {
			t.Errorf("Compatible(%q, %q) = %v", test.a, test.b, err)
		}
	}
}

func TestData(t *testing.T) {
	dir := t.TempDir()
	check := func(version string, good bool) {
		t.Helper()
		before, _ := os.ReadFile(filepath.Join(dir, versionFile))
		if err := CheckData(dir, version); (err == nil) != good {
			t.Errorf("CheckData(%s) = %v", version, err)
		}
		if after, _ := os.ReadFile(filepath.Join(dir, versionFile)); string(after) != string(before) {
			t.Errorf("CheckData(%s) wrote %s", version, after)
		}
	}
	note := func(version string) {
		t.Helper()
		if err := NoteData(dir, version); err != nil {
			t.Fatal(err)
		}
	}
	check("v0.1.0", true)
	note("v0.6.2")
	check("v0.5.0", true)
	check("v0.4.9", false)
	check("v0.9.0", true) // newer programs read what older ones wrote
	note("v0.5.0")
	check("v0.4.9", false) // what v0.6 wrote may still be there
	note("dev")
	check("v0.4.9", false)
	check("dev", true)
}

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func TestChoose(t *testing.T) {
	d := Dir("/data")
	older, newer := Program{Hash: hashOf("old")}, Program{Hash: hashOf("new")}
	launcher := Launcher{Path: "/usr/local/bin/gantry", Size: 3, MTime: time.Unix(1, 0)}
	replaced := launcher
	replaced.Size++
	at := func(p Program) Launcher { return Launcher{Path: d.Path(p.Hash)} }
	trial := Note{State: Trial, Current: newer, Previous: older, Launcher: launcher}
	done := Note{State: Done, Current: newer, Previous: older, Launcher: launcher}
	failed := Note{State: Failed, Current: older, Previous: older, Launcher: launcher}
	for _, test := range []struct {
		name    string
		note    Note
		self    Launcher
		missing bool
		want    Choice
	}{
		{name: "the new one on trial", note: trial, self: at(newer)},
		{name: "the launcher during a trial", note: trial, self: launcher, want: Choice{Run: d.Path(older.Hash), GiveUp: true}},
		{name: "the old one during a trial", note: trial, self: at(older), want: Choice{GiveUp: true}},
		{name: "the launcher after a trial", note: done, self: launcher, want: Choice{Run: d.Path(newer.Hash)}},
		{name: "the old one after a trial", note: done, self: at(older), want: Choice{Run: d.Path(newer.Hash)}},
		{name: "the launcher after a failure", note: failed, self: launcher, want: Choice{Run: d.Path(older.Hash)}},
		{name: "the old one after a failure", note: failed, self: at(older)},
		{name: "another one by hand", note: done, self: replaced, want: Choice{Forget: true}},
		{name: "another one by hand during a trial", note: trial, self: replaced, want: Choice{Forget: true}},
		{name: "the new one is gone", note: done, self: launcher, missing: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := choose(d, test.note, test.self, func(string) bool { return !test.missing }); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestNote(t *testing.T) {
	d := Dir(t.TempDir())
	older, newer := Program{hashOf("old"), "v1"}, Program{hashOf("new"), "v2"}
	read := func() Note {
		t.Helper()
		n, there, err := d.Read()
		if err != nil || !there {
			t.Fatal(there, err)
		}
		return n
	}
	if err := errors.Join(d.Confirm(), d.GiveUp("x"), d.Prune()); err != nil {
		t.Fatal(err)
	}
	begin := func() {
		t.Helper()
		if err := d.write(Note{State: Trial, Current: newer, Previous: older}); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	if on, err := d.OnTrial(d.Path(newer.Hash)); !on || err != nil {
		t.Error("the new program is not on trial", err)
	}
	if on, _ := d.OnTrial(d.Path(older.Hash)); on {
		t.Error("the old program is on trial")
	}
	if err := d.Confirm(); err != nil || read().State != Done || read().Current != newer {
		t.Errorf("after Confirm: %v %+v", err, read())
	}
	if err := d.GiveUp("too late"); err != nil || read().State != Done {
		t.Errorf("after a GiveUp that is too late: %v %+v", err, read())
	}
	begin()
	if err := d.GiveUp("broken"); err != nil {
		t.Fatal(err)
	}
	if n := read(); n.State != Failed || n.Current != older || n.Tried != newer.Hash || n.Failure != "broken" {
		t.Errorf("after GiveUp: %+v", n)
	}
}

func TestPrograms(t *testing.T) {
	d := Dir(t.TempDir())
	script := "#!/bin/sh\necho '{\"version\": \"v1.2.3\"}'\n"
	hash := hashOf(script)
	if err := d.Add(strings.NewReader(script+"more"), hash); !errors.Is(err, ErrProgram) {
		t.Errorf("a program with another hash: %v", err)
	}
	if d.Has(hash) {
		t.Error("a program with another hash was kept")
	}
	if err := d.Add(strings.NewReader(script), hash); err != nil {
		t.Fatal(err)
	}
	if version, err := VersionOf(t.Context(), d.Path(hash)); version != "v1.2.3" || err != nil {
		t.Errorf("version %q, %v", version, err)
	}
	other := "#!/bin/sh\nexit 1\n"
	if err := d.Add(strings.NewReader(other), hashOf(other)); err != nil {
		t.Fatal(err)
	}
	if _, err := VersionOf(t.Context(), d.Path(hashOf(other))); !errors.Is(err, ErrProgram) {
		t.Errorf("version of what is no gantry: %v", err)
	}
	if err := d.write(Note{State: Done, Current: Program{Hash: hash}}); err != nil {
		t.Fatal(err)
	}
	if err := d.Prune(); err != nil || !d.Has(hash) || d.Has(hashOf(other)) {
		t.Errorf("after Prune: %v, current %v, other %v", err, d.Has(hash), d.Has(hashOf(other)))
	}
}
