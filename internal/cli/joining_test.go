package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestWithoutToken(t *testing.T) {
	for name, test := range map[string]struct{ args, want string }{
		"none":          {"up --detach", "up --detach"},
		"two words":     {"up --join a --token x.y.z --detach", "up --join a --detach"},
		"one word":      {"up --token=x.y.z --server", "up --server"},
		"twice":         {"up --token a --token=b", "up"},
		"last":          {"up --token", "up"},
		"not a flag":    {"up -- --token x", "up -- --token x"},
		"another flag":  {"up --token-file f", "up --token-file f"},
		"as data dir's": {"--data-dir /d up --token x", "--data-dir /d up"},
	} {
		t.Run(name, func(t *testing.T) {
			args := strings.Fields(test.args)
			if got := withoutToken(args); !slices.Equal(got, strings.Fields(test.want)) {
				t.Errorf("%q", got)
			}
			if strings.Join(args, " ") != test.args {
				t.Error("the arguments themselves were changed")
			}
		})
	}
}

func TestFindToken(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, test := range map[string]struct {
		flags    joinFlags
		variable string
		want     string
		fails    string
	}{
		"flag":                 {joinFlags{address: "a", token: "t"}, "v", "t", ""},
		"file":                 {joinFlags{address: "a", file: file("good", "t\n")}, "v", "t", ""},
		"variable":             {joinFlags{address: "a"}, "v", "v", ""},
		"variable, no join":    {joinFlags{}, "v", "", ""},
		"both":                 {joinFlags{address: "a", token: "t", file: "f"}, "", "", "exclude each other"},
		"empty file":           {joinFlags{address: "a", file: file("empty", " \n")}, "v", "", "is empty"},
		"no file":              {joinFlags{address: "a", file: filepath.Join(dir, "none")}, "", "", "no such file"},
		"something else in it": {joinFlags{address: "a", file: file("large", strings.Repeat("x", 5000))}, "", "", "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.flags.find(test.variable)
			switch {
			case test.fails == "" && err != nil, test.fails != "" && (err == nil || !strings.Contains(err.Error(), test.fails)):
				t.Errorf("error %v, want %q", err, test.fails)
			case err == nil && test.flags.token != test.want:
				t.Errorf("token %q, want %q", test.flags.token, test.want)
			}
		})
	}
}
