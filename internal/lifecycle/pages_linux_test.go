package lifecycle

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestForgetPages(t *testing.T) {
	before := mappedFile(t)
	if err := ForgetPages(); err != nil {
		t.Fatal(err)
	}
	if after := mappedFile(t); after >= before {
		t.Errorf("%d kB of files are mapped afterwards, %d before", after, before)
	}
}

// mappedFile is how many kB of files this process has in its memory.
func mappedFile(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "RssFile:" {
			kilobytes, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return kilobytes
		}
	}
	t.Fatal("no RssFile in /proc/self/status")
	return 0
}

func TestReadOnlyOf(t *testing.T) {
	tests := map[string]struct {
		line string
		ok   bool
	}{
		"code":            {"00400000-00800000 r-xp 00000000 fe:00 1 /bin/x", true},
		"data":            {"00800000-00900000 rw-p 00400000 fe:00 1 /bin/x", false},
		"another file":    {"00400000-00800000 r--p 00000000 fe:00 1 /bin/y", false},
		"no file":         {"00400000-00800000 r--p 00000000 00:00 0", false},
		"not an address":  {"zz-00800000 r--p 00000000 fe:00 1 /bin/x", false},
		"nothing between": {"00400000-00400000 r--p 00000000 fe:00 1 /bin/x", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, _, ok := readOnlyOf(test.line, "/bin/x"); ok != test.ok {
				t.Errorf("readOnlyOf(%q) says %v", test.line, ok)
			}
		})
	}
}
