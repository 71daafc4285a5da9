//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSecurity holds a running node against docs/security.md: what it listens on, who may read its files, where secrets end up.
func TestSecurity(t *testing.T) {
	c := newCluster(t)
	c.up(t)
	c.load(t, false)
	secret := "e2e" + rand.Text()
	ns := c.namespace(t, "security")
	// kubectl is not used: its own command line and manifest would hold the secret.
	_, err := c.client(t).CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "password"}, StringData: map[string]string{"password": secret},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, ns, secretManifest)
	c.pod(t, ns, "reader", "the pod with the secret runs", running)
	token := strings.TrimSpace(c.mustGantry(t, "token", "create", "--json"))
	t.Run("listeners", func(t *testing.T) { testListeners(t, c) })
	t.Run("file modes", func(t *testing.T) { testFileModes(t, c) })
	t.Run("secrets", func(t *testing.T) {
		testSecretsStay(t, c, map[string]string{"the secret": secret, "the token": tokenSecret(t, token)})
	})
}

const secretManifest = `
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:e2e
    command: [sleep, "100000"]
    env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: password, key: password}}}]
    volumeMounts: [{name: password, mountPath: /password}]
  volumes: [{name: password, secret: {secretName: password}}]
`

// tokenSecret is the part of a joining token that nobody may know: ID.SECRET.PIN.
func tokenSecret(t *testing.T, document string) string {
	t.Helper()
	_, rest, _ := strings.Cut(document, `"token": "`)
	parts := strings.Split(rest, ".")
	if len(parts) < 3 || len(parts[1]) < 16 {
		t.Fatalf("this is no token: %s", document)
	}
	return parts[1]
}

// testListeners compares the sockets of the node's network namespace with the table of the document.
func testListeners(t *testing.T, c *cluster) {
	documented := documentedListeners(t)
	found := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", c.pid(t), table))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if name := c.listenerName(t, table, strings.Fields(line)); name != "" {
				found[name] = true
			}
		}
	}
	if len(found) < 8 {
		t.Errorf("only %v were found; the test does not see them", found)
	}
	for name := range found {
		if !slices.ContainsFunc(documented, func(pattern string) bool { return pathMatches(pattern, name) }) {
			t.Errorf("docs/security.md does not name the listener `%s`", name)
		}
	}
	for _, pattern := range documented {
		seen := false
		for name := range found {
			seen = seen || pathMatches(pattern, name)
		}
		if !seen && !strings.HasSuffix(pattern, "…") {
			t.Errorf("docs/security.md names `%s`, and this node does not listen on it", pattern)
		}
	}
}

func pathMatches(pattern, name string) bool {
	ok, err := filepath.Match(strings.TrimSuffix(pattern, " …"), name)
	return err == nil && ok
}

// documentedListeners are the first cells of the table below the heading "Listeners". Those that end in " …" are not there all the
// time.
func documentedListeners(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Listeners\n")
	if !ok {
		t.Fatal("docs/security.md has no section Listeners")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var out []string
	for line := range strings.Lines(section) {
		cell, isRow := strings.CutPrefix(line, "| `")
		if cell, _, ok = strings.Cut(cell, "` |"); isRow && ok {
			out = append(out, cell)
		}
	}
	return out
}

// listenerName is how the document calls a socket of /proc/net that listens; "" is: it does not.
func (c *cluster) listenerName(t *testing.T, table string, fields []string) string {
	t.Helper()
	if table == "unix" {
		// Num RefCount Protocol Flags Type St Inode Path; the flag is __SO_ACCEPTCON.
		if len(fields) < 8 || fields[3] != "00010000" {
			return ""
		}
		return "unix " + strings.TrimPrefix(fields[7], c.dir+"/")
	}
	// sl local_address rem_address st ...; 0A is TCP_LISTEN, and UDP sockets that are not connected have 07.
	if len(fields) < 4 || fields[3] != "0A" && fields[3] != "07" {
		return ""
	}
	at, err := parseProcAddress(fields[1])
	if err != nil {
		t.Fatalf("/proc/net/%s: %v", table, err)
	}
	host := at.Addr().Unmap().String()
	switch {
	case at.Addr().IsUnspecified():
		host = "ANY"
	case host == machineIP:
		host = "NODE"
	}
	return fmt.Sprintf("%s %s:%d", strings.TrimSuffix(table, "6"), host, at.Port())
}

// parseProcAddress reads "0100007F:192B": words of four bytes in the machine's order, then the port.
func parseProcAddress(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	for i := 0; i < len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	addr, _ := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr, uint16(n)), err
}

// testFileModes walks the data dir: nobody but root gets into it, and files with keys are root's alone even so.
func testFileModes(t *testing.T, c *cluster) {
	info, err := os.Stat(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the data dir has mode %v", info.Mode())
	}
	keys := 0
	err = filepath.WalkDir(c.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // it has just gone
		}
		name := strings.TrimPrefix(path, c.dir+"/")
		if entry.IsDir() {
			// Images' and pods' own files have the modes that their makers gave them.
			if slices.Contains([]string{"containerd", "pods", "volumes", "bin"}, name) {
				return fs.SkipDir
			}
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		if !isSecretFile(name, path, info) {
			return nil
		}
		keys++
		forbidden := fs.FileMode(0o077)
		if info.Mode().Type() == fs.ModeSocket {
			forbidden = 0o022 // who may write may connect
		}
		if info.Mode().Perm()&forbidden != 0 {
			t.Errorf("%s is for root alone and has mode %v", name, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if keys < 10 {
		t.Errorf("only %d files with keys were found; the test does not see them", keys)
	}
}

// isSecretFile reports whether a file holds what others must not read: private keys, credentials, the cluster's state, sockets.
func isSecretFile(name, path string, info fs.FileInfo) bool {
	if strings.HasPrefix(name, "etcd/") || info.Mode().Type() == fs.ModeSocket {
		return true
	}
	if !info.Mode().IsRegular() || info.Size() > 1<<20 {
		return false
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	return bytes.Contains(text, []byte("PRIVATE KEY-----")) || bytes.Contains(text, []byte("client-key-data")) ||
		bytes.Contains(text, []byte("EncryptionConfiguration")) || bytes.Contains(text, []byte(`"PRIVATE`))
}

// testSecretsStay looks for secrets where they must not be: logs, command lines and environments of Gantry's own processes, and
// anything that is written to the disk in plain text.
func testSecretsStay(t *testing.T, c *cluster, secrets map[string]string) {
	control, seen := "/registry/pods/security/reader", false // that is on the disk, so that the search is known to work
	for _, where := range []string{"log", "edge", "net", "run", "etcd"} {
		err := filepath.WalkDir(c.path(where), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return nil
			}
			seen = seen || contains(t, path, control)
			for what, secret := range secrets {
				if contains(t, path, secret) {
					t.Errorf("%s is in %s", what, path)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if !seen {
		t.Error("not even the pod was found in etcd's files; the search does not work")
	}
	for pid, cmdline := range c.processes() {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil || strings.HasPrefix(cmdline, "sleep ") {
			continue // it has gone, or is the pod that was given the secret
		}
		for what, secret := range secrets {
			if strings.Contains(cmdline, secret) || bytes.Contains(environ, []byte(secret)) {
				t.Errorf("%s is in the command line or environment of %s", what, cmdline)
			}
		}
	}
}

func (c *cluster) path(elements ...string) string {
	return filepath.Join(append([]string{c.dir}, elements...)...)
}

// contains reads a file piece by piece: etcd's are 64 MB.
func contains(t *testing.T, path, secret string) bool {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	reader := bufio.NewReaderSize(file, 1<<20)
	deadline := time.Now().Add(30 * time.Second)
	var tail []byte
	piece := make([]byte, 1<<20)
	for time.Now().Before(deadline) {
		n, err := reader.Read(piece)
		window := append(tail, piece[:n]...)
		if bytes.Contains(window, []byte(secret)) {
			return true
		}
		if err != nil {
			return false
		}
		tail = slices.Clone(window[max(0, len(window)-len(secret)):])
	}
	t.Errorf("%s takes too long to read", path)
	return false
}
