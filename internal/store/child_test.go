package store

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// child is the process that TestKilledProcess kills: a member that does what its input says.
func child(t *testing.T, dir string) {
	p := &peers{t: t, dir: os.Getenv("STORE_TEST_PEERS")}
	m := run(t, Options{Dir: dir, Name: "a", Peer: p.peer(os.Getenv("STORE_TEST_URL"))})
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		switch verb {
		case "add":
			_, all, err := m.AddLearner(t.Context(), arg)
			if err != nil {
				t.Fatal(err)
			}
			var parts []string
			for _, one := range all {
				parts = append(parts, one.ID+"="+one.PeerURLs[0])
			}
			fmt.Println("ANSWER", strings.Join(parts, ","))
		case "write":
			for i := 0; ; i++ {
				name := fmt.Sprint("k-", i)
				if _, err := m.Create(t.Context(), "configmaps", "default/"+name, configMap(name, "red", "1")); err != nil {
					t.Fatal(err)
				}
				fmt.Println("ANSWER wrote", name)
			}
		}
	}
}

func parseMembers(text string) []Member {
	var out []Member
	for part := range strings.SplitSeq(text, ",") {
		id, url, _ := strings.Cut(part, "=")
		out = append(out, Member{ID: id, PeerURLs: []string{url}})
	}
	return out
}

func linesOf(r io.Reader) <-chan string {
	lines := make(chan string, 100000)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(r); in.Scan(); {
			lines <- in.Text()
		}
	}()
	return lines
}

// answer is the child's next one.
func answer(t *testing.T, lines <-chan string) string {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				t.Fatal("the child ended")
			}
			if text, found := strings.CutPrefix(line, "ANSWER "); found {
				return text
			}
		case <-limit:
			t.Fatal("the child does not answer")
		}
	}
}
