//go:build linux

package main

import (
	"os"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const line = "77 (a (b) c) S 1 77 77 0 -1 4194560 100 0 0 0 250 50 7 8 20 0 12 0 9000 1 2 3"
	got, err := parseStat([]byte(line))
	if err != nil || got != 3*time.Second {
		t.Errorf("parseStat = %v, %v; want 3s", got, err)
	}
	if _, err := parseStat([]byte("77 (a) S 1")); err == nil {
		t.Error("parseStat took a short line")
	}
}

func TestParseMachine(t *testing.T) {
	got, err := parseMachine([]byte("cpu  100 20 30 9999 8888 5 4 1 0 0\ncpu0 1 2 3\n"))
	if err != nil || got != 1600*time.Millisecond {
		t.Errorf("parseMachine = %v, %v; want 1.6s", got, err)
	}
	if _, err := parseMachine([]byte("intr 1 2 3")); err == nil {
		t.Error("parseMachine took another line")
	}
}

func TestParseRollup(t *testing.T) {
	const content = "00400000-7fff r--p 00000000 00:00 0 [rollup]\nRss:      2000 kB\nPss:      1000 kB\nPss_Dirty: 10 kB\n"
	got, err := parseRollup(content)
	if want := (memory{pss: 1.024, rss: 2.048}); err != nil || got != want {
		t.Errorf("parseRollup = %v, %v; want %v", got, err, want)
	}
	if _, err := parseRollup("Rss: 1 kB\n"); err == nil {
		t.Error("parseRollup took content without Pss")
	}
}

func TestThisProcessIsAccountedFor(t *testing.T) {
	used, err := cpuOf([]int{os.Getpid()})
	if err != nil || used < 0 {
		t.Errorf("cpuOf = %v, %v", used, err)
	}
	held, err := memoryOf([]int{os.Getpid()})
	if err != nil || held.pss <= 0 || held.rss < held.pss {
		t.Errorf("memoryOf = %+v, %v", held, err)
	}
}
