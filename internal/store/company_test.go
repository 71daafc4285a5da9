package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long tests wait for what takes an election or two.
const patience = 60 * time.Second

// peers makes what the members of one test believe each other by.
type peers struct {
	t   *testing.T
	dir string
}

func newPeers(t *testing.T) *peers {
	t.Helper()
	dir := t.TempDir()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd-ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "peer"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte, err error) {
		t.Helper()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	write("ca.crt", "CERTIFICATE", der, err)
	der, err = x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	write("peer.crt", "CERTIFICATE", der, err)
	der, err = x509.MarshalECPrivateKey(key)
	write("peer.key", "EC PRIVATE KEY", der, err)
	return &peers{t: t, dir: dir}
}

// at is a peer address on a free port of the loopback.
func (p *peers) at() *Peer {
	p.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return p.peer("https://" + l.Addr().String())
}

func (p *peers) peer(url string) *Peer {
	file := func(name string) string { return filepath.Join(p.dir, name) }
	return &Peer{URL: url, CertFile: file("peer.crt"), KeyFile: file("peer.key"), CAFile: file("ca.crt")}
}

// testMember is a store of a test that has or gets company.
type testMember struct {
	*Store
	t      *testing.T
	opts   Options
	cancel context.CancelFunc
	ended  chan error
}

// run starts a store that may have company.
func run(t *testing.T, opts Options) *testMember {
	t.Helper()
	m := launch(t, opts)
	select {
	case <-m.Ready():
	case err := <-m.ended:
		t.Fatalf("%s: Run ended at the start: %v", opts.Name, err)
	case <-time.After(patience):
		t.Fatalf("%s is not ready", opts.Name)
	}
	return m
}

func launch(t *testing.T, opts Options) *testMember {
	t.Helper()
	opts.Kinds, opts.NoFsync = testKinds(), true
	if os.Getenv("STORE_TEST_LOG") != "" {
		opts.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("member", opts.Name)
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &testMember{Store: s, t: t, opts: opts, cancel: cancel, ended: make(chan error, 1)}
	go func() {
		err := s.Run(ctx)
		m.ended <- err
		close(m.ended)
	}()
	t.Cleanup(m.stop)
	return m
}

// stop ends the store cleanly.
func (m *testMember) stop() {
	m.cancel()
	select {
	case <-m.ended:
	case <-time.After(patience):
		m.t.Errorf("%s does not end", m.opts.Name)
	}
}

// kill ends the store without a word to the others.
func (m *testMember) kill() {
	m.member.peers.close()
	m.member.server.HardStop()
	m.stop()
}

// join adds a member to those of m.
func (m *testMember) join(opts Options) *testMember {
	m.t.Helper()
	_, all, err := m.AddLearner(m.t.Context(), opts.Peer.URL)
	if err != nil {
		m.t.Fatalf("AddLearner: %v", err)
	}
	opts.Join = all
	return run(m.t, opts)
}

// three makes a cluster of three.
func three(t *testing.T) (*peers, []*testMember) {
	t.Helper()
	p := newPeers(t)
	a := run(t, Options{Dir: t.TempDir(), Name: "a", Peer: p.at()})
	b := a.join(Options{Dir: t.TempDir(), Name: "b", Peer: p.at()})
	c := b.join(Options{Dir: t.TempDir(), Name: "c", Peer: p.at()})
	return p, []*testMember{a, b, c}
}

// leaderOf waits for the one that leads.
func leaderOf(t *testing.T, members ...*testMember) *testMember {
	t.Helper()
	var found *testMember
	eventually(t, "a leader", func() bool {
		for _, m := range members {
			if leading, _ := m.Leading(); leading {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(limit) {
			t.Fatalf("waited for %s", what)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

// mustRead reads key after a Sync.
func mustRead(t *testing.T, s *Store, name string) *Entry {
	t.Helper()
	if err := s.Sync(t.Context()); err != nil {
		t.Fatalf("Sync: %v", err)
	}
	e, err := s.Get("configmaps", "default/"+name)
	if err != nil {
		t.Fatalf("Get %s: %v", name, err)
	}
	return e
}

func names(members []Member) string {
	var out []string
	for _, m := range members {
		out = append(out, m.Name)
	}
	return strings.Join(out, " ")
}

// TestOneGrowsToThreeAndShrinksBack: writes go on all the time, on every member, and each sees what was acknowledged by another.
func TestOneGrowsToThreeAndShrinksBack(t *testing.T) {
	p := newPeers(t)
	a := run(t, Options{Dir: t.TempDir(), Name: "a", Peer: p.at()})
	mustCreate(t, a.Store, "early", "red", "1")
	ctx, stopWriter := context.WithCancel(t.Context())
	var written []string
	done := make(chan error, 1)
	go func() { // on the first member, through all changes
		for i := 0; ; i++ {
			name := fmt.Sprint("steady-", i)
			if ctx.Err() != nil {
				done <- nil
				return
			}
			if _, err := a.Create(context.WithoutCancel(ctx), "configmaps", "default/"+name, configMap(name, "red", "x")); err != nil {
				done <- fmt.Errorf("%s: %w", name, err)
				return
			}
			written = append(written, name)
		}
	}()
	b := a.join(Options{Dir: t.TempDir(), Name: "b", Peer: p.at()})
	c := b.join(Options{Dir: t.TempDir(), Name: "c", Peer: p.at()})
	all := []*testMember{a, b, c}
	for i, m := range all {
		name := fmt.Sprint("from-", i)
		mustCreate(t, m.Store, name, "red", "1")
		for _, reader := range all {
			mustRead(t, reader.Store, name)
			mustRead(t, reader.Store, "early")
		}
	}
	members, err := c.Members(t.Context())
	if err != nil || names(members) != "a b c" || slices.ContainsFunc(members, func(m Member) bool { return m.Learner }) {
		t.Fatalf("Members = %+v, %v; want three voters", members, err)
	}
	for _, m := range []*testMember{b, c} {
		id := idOf(t, a, m.opts.Name)
		if err := a.Remove(t.Context(), id); err != nil {
			t.Fatalf("Remove %s: %v", m.opts.Name, err)
		}
		if err := <-m.ended; !errors.Is(err, ErrRemoved) {
			t.Errorf("Run of the removed %s = %v; want ErrRemoved", m.opts.Name, err)
		}
	}
	eventually(t, "a to be alone", func() bool { return !a.company.Load() })
	stopWriter()
	if err := <-done; err != nil {
		t.Errorf("a write failed meanwhile: %v", err)
	}
	mustCreate(t, a.Store, "late", "red", "1")
	for _, name := range append(written, "from-0", "from-1", "from-2", "early") {
		mustRead(t, a.Store, name)
	}
	if err := a.Remove(t.Context(), idOf(t, a, "a")); !errors.Is(err, ErrLast) {
		t.Errorf("Remove of the only one = %v; want ErrLast", err)
	}
	t.Logf("%d writes meanwhile", len(written))
}

func idOf(t *testing.T, at *testMember, name string) string {
	t.Helper()
	members, err := at.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if m.Name == name {
			return m.ID
		}
	}
	t.Fatalf("no member %s among %v", name, members)
	return ""
}

// TestLeaderIsKilled: the others go on with everything that was acknowledged, and the killed one comes back.
func TestLeaderIsKilled(t *testing.T) {
	_, members := three(t)
	leader := leaderOf(t, members...)
	followers := slices.DeleteFunc(slices.Clone(members), func(m *testMember) bool { return m == leader })
	for i := range 50 {
		mustCreate(t, members[i%3].Store, fmt.Sprint("n-", i), "red", "1")
	}
	leader.kill()
	begin := time.Now()
	eventually(t, "a write", func() bool {
		_, err := followers[0].Create(t.Context(), "configmaps", "default/after", configMap("after", "red", "1"))
		return err == nil || errors.Is(err, ErrExists)
	})
	t.Logf("writes again after %v", time.Since(begin))
	next := leaderOf(t, followers...)
	for i := range 50 {
		mustRead(t, next.Store, fmt.Sprint("n-", i))
	}
	opts := leader.opts
	back := run(t, opts)
	mustRead(t, back.Store, "after")
	mustCreate(t, back.Store, "back", "red", "1")
	mustRead(t, followers[1].Store, "back")
}

// TestReadsSeeWritesOfOthers: whoever reads after an answer sees what was answered, on whichever member.
func TestReadsSeeWritesOfOthers(t *testing.T) {
	_, members := three(t)
	e := mustCreate(t, members[0].Store, "x", "red", "0")
	for i := range 200 {
		next, err := members[i%3].Update(t.Context(), "configmaps", "default/x", e.Rev, configMap("x", "red", fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, members[(i+1)%3].Store, "x"); got.Rev != next.Rev {
			t.Fatalf("read %d after %d was acknowledged", got.Rev, next.Rev)
		}
		e = next
	}
}

// TestCutOffLeader: a leader that nobody hears gives up, takes no writes, and catches up when it is back.
func TestCutOffLeader(t *testing.T) {
	_, members := three(t)
	leader := leaderOf(t, members...)
	others := slices.DeleteFunc(slices.Clone(members), func(m *testMember) bool { return m == leader })
	mustCreate(t, leader.Store, "before", "red", "1")
	for _, other := range others {
		leader.member.server.CutPeer(other.member.server.MemberID())
		other.member.server.CutPeer(leader.member.server.MemberID())
	}
	eventually(t, "the old leader to give up", func() bool { leading, _ := leader.Leading(); return !leading })
	next := leaderOf(t, others...)
	mustCreate(t, next.Store, "meanwhile", "red", "1")
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := leader.Sync(short); err == nil {
		t.Error("a member that is cut off gave a consistent read")
	}
	if _, err := leader.Create(short, "configmaps", "default/lost", configMap("lost", "red", "1")); err == nil {
		t.Error("a member that is cut off took a write")
	}
	for _, other := range others {
		leader.member.server.MendPeer(other.member.server.MemberID())
		other.member.server.MendPeer(leader.member.server.MemberID())
	}
	eventually(t, "the old leader to be back", func() bool { return leader.Sync(t.Context()) == nil })
	mustRead(t, leader.Store, "meanwhile")
}

// TestFollowerCatchesUpBySnapshot: one that was away longer than the log and the history reach is given a snapshot. What
// watched it begins again.
func TestFollowerCatchesUpBySnapshot(t *testing.T) {
	_, members := three(t)
	leader := leaderOf(t, members...)
	others := slices.DeleteFunc(slices.Clone(members), func(m *testMember) bool { return m == leader })
	away, stays := others[0], others[1]
	mustCreate(t, leader.Store, "gone", "red", "1")
	mustRead(t, away.Store, "gone")
	w, err := away.Watch(t.Context(), "configmaps", WatchOptions{Since: away.Revision()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, other := range []*testMember{leader, stays} {
		away.member.server.CutPeer(other.member.server.MemberID())
		other.member.server.CutPeer(away.member.server.MemberID())
	}
	var last int64
	var writers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() {
			e, err := leader.Create(t.Context(), "configmaps", fmt.Sprint("default/w-", i), configMap(fmt.Sprint("w-", i), "red", "0"))
			for n := 0; n < 800 && err == nil; n++ {
				e, err = leader.Update(t.Context(), "configmaps", e.Key, e.Rev, configMap(fmt.Sprint("w-", i), "red", fmt.Sprint(n)))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	e := mustRead(t, leader.Store, "gone")
	if _, err := leader.Delete(t.Context(), "configmaps", "default/gone", e.Rev); err != nil {
		t.Fatal(err)
	}
	last = leader.Revision()
	if err := leader.compactTo(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	for _, other := range []*testMember{leader, stays} {
		away.member.server.MendPeer(other.member.server.MemberID())
		other.member.server.MendPeer(away.member.server.MemberID())
	}
	eventually(t, "the one that was away", func() bool { return away.Sync(t.Context()) == nil && away.Revision() >= last })
	if _, err := away.Get("configmaps", "default/gone"); !errors.Is(err, ErrNotFound) {
		t.Errorf("what was deleted meanwhile is still there: %v", err)
	}
	for i := range 8 {
		if got, want := mustRead(t, away.Store, fmt.Sprint("w-", i)).Rev, mustRead(t, leader.Store, fmt.Sprint("w-", i)).Rev; got != want {
			t.Errorf("w-%d is at %d, want %d", i, got, want)
		}
	}
	for {
		if _, _, err := w.Next(t.Context()); err != nil {
			if !IsEnded(err) {
				t.Errorf("the watch ended with %v", err)
			}
			break
		}
	}
	mustCreate(t, away.Store, "again", "red", "1")
}

// TestJoinThatFails: a learner that never came is replaced by the next try, and can be taken away.
func TestJoinThatFails(t *testing.T) {
	p := newPeers(t)
	a := run(t, Options{Dir: t.TempDir(), Name: "a", Peer: p.at()})
	at := p.at()
	learner, _, err := a.AddLearner(t.Context(), at.URL)
	if err != nil {
		t.Fatal(err)
	}
	mustCreate(t, a.Store, "x", "red", "1")
	if _, _, err := a.AddLearner(t.Context(), p.at().URL); !errors.Is(err, ErrJoining) {
		t.Errorf("a second learner: %v; want ErrJoining", err)
	}
	b := a.join(Options{Dir: t.TempDir(), Name: "b", Peer: at})
	if id := idOf(t, a, "b"); id == learner.ID {
		t.Errorf("the learner that failed was not replaced")
	}
	if _, _, err := a.AddLearner(t.Context(), at.URL); !errors.Is(err, ErrMember) {
		t.Errorf("adding a voter again: %v; want ErrMember", err)
	}
	mustRead(t, b.Store, "x")
	third, _, err := a.AddLearner(t.Context(), p.at().URL)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(t.Context(), third.ID); err != nil {
		t.Fatalf("removing the learner: %v", err)
	}
	// Two of which one is down agree on nothing.
	b.kill()
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := a.Remove(short, third.ID); err == nil {
		t.Error("a change of members without a majority")
	}
}

// TestNoAddressNoCompany: a store without a peer address refuses others.
func TestNoAddressNoCompany(t *testing.T) {
	s, _ := start(t, Options{Dir: t.TempDir()})
	if _, _, err := s.AddLearner(t.Context(), "https://127.0.0.1:1"); !errors.Is(err, ErrNoPeer) {
		t.Errorf("AddLearner = %v; want ErrNoPeer", err)
	}
}

// TestKilledProcess: what a member acknowledged before its process was killed is there. The child is this binary.
func TestKilledProcess(t *testing.T) {
	if dir := os.Getenv("STORE_TEST_CHILD"); dir != "" {
		child(t, dir)
		return
	}
	p := newPeers(t)
	first := p.at()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledProcess$", "-test.v")
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+t.TempDir(), "STORE_TEST_PEERS="+p.dir, "STORE_TEST_URL="+first.URL)
	talk, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	t.Cleanup(killed)
	lines := linesOf(answers)
	ask := func(line string) string {
		t.Helper()
		if _, err := fmt.Fprintln(talk, line); err != nil {
			t.Fatal(err)
		}
		return answer(t, lines)
	}
	var others []*testMember
	for _, name := range []string{"b", "c"} {
		at := p.at()
		others = append(others, run(t, Options{Dir: t.TempDir(), Name: name, Peer: at, Join: parseMembers(ask("add " + at.URL))}))
	}
	if _, err := fmt.Fprintln(talk, "write"); err != nil { // it writes until it dies
		t.Fatal(err)
	}
	var acknowledged []string
	for range 200 {
		acknowledged = append(acknowledged, strings.TrimPrefix(answer(t, lines), "wrote "))
	}
	killed()
	for line := range lines { // what it said before it died
		if name, ok := strings.CutPrefix(line, "ANSWER wrote "); ok {
			acknowledged = append(acknowledged, name)
		}
	}
	begin := time.Now()
	next := leaderOf(t, others...)
	t.Logf("a new leader after %v", time.Since(begin))
	for _, name := range acknowledged {
		mustRead(t, next.Store, name)
	}
	mustCreate(t, others[0].Store, "after", "red", "1")
	t.Logf("%d writes acknowledged, none lost", len(acknowledged))
}
