//go:build linux

package gateway

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gantry.dev/gantry/test/conformance"
	"gantry.dev/gantry/test/conformance/cluster"
	"gantry.dev/gantry/test/upstream"
)

const (
	binEnv = "GANTRY_TEST_BIN"         // folder of gantry and kubectl
	runEnv = "GANTRY_CONFORMANCE_TEST" // the name of one test; empty: all
	root   = "../../.."                // of the repository
)

// features are what is held against the suite beyond the core of GATEWAY-HTTP and GATEWAY-GRPC. Retries are not: the field is in
// the experimental channel of definitions, and Gantry has the standard one.
func features() []string {
	return []string{
		"GatewayPort8080",
		"HTTPRouteDestinationPortMatching", "HTTPRouteBackendRequestHeaderModification", "HTTPRouteQueryParamMatching", "HTTPRouteMethodMatching",
		"HTTPRouteResponseHeaderModification", "HTTPRoutePortRedirect", "HTTPRouteSchemeRedirect", "HTTPRoutePathRedirect", "HTTPRouteHostRewrite",
		"HTTPRoutePathRewrite", "HTTPRouteRequestMirror", "HTTPRouteRequestMultipleMirrors", "HTTPRouteRequestPercentageMirror", "HTTPRouteRequestTimeout",
		"HTTPRouteBackendTimeout", "HTTPRouteParentRefPort", "HTTPRouteBackendProtocolH2C", "HTTPRouteBackendProtocolWebSocket", "HTTPRouteNamedRouteRule",
		"HTTPRoute303RedirectStatusCode", "HTTPRoute307RedirectStatusCode", "HTTPRoute308RedirectStatusCode",
	}
}

// TestGatewayAPI runs the suite. A test that fails must be in the list, and one in the list must fail.
func TestGatewayAPI(t *testing.T) {
	bin := os.Getenv(binEnv)
	if bin == "" {
		t.Skipf("%s does not say where the programs are; \"make conformance PARTS=gateway\" does", binEnv)
	}
	programs, err := upstream.Build(t.Context(), upstream.BuildOptions{
		Module: root + "/test/conformance/gatewayapi", Cache: root + "/.cache/gatewayapi", Log: t.Output(), Programs: conformance.GatewayPrograms(),
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Start(t.Context(), cluster.Options{Bin: bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if err := c.LoadGatewayImages(t.Context(), filepath.Join(programs, "echo-basic")); err != nil {
		t.Fatal(err)
	}
	wait := c.Command(t.Context(), c.Kubectl(), "wait", "--for=create", "gatewayclass/gantry", "--timeout=60s") // made after the start
	if text, err := wait.CombinedOutput(); err != nil {
		t.Fatalf("the class of Gateways: %v\n%s", err, text)
	}
	out, err := filepath.Abs(filepath.Join(root, ".cache/gatewayapi/out"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(out, "suite.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	args := []string{"-test.v", "-test.timeout=60m", "-gateway-class=gantry", "-conformance-profiles=GATEWAY-HTTP,GATEWAY-GRPC",
		"-supported-features=" + strings.Join(features(), ",")}
	one := os.Getenv(runEnv)
	if one != "" {
		args = append(args, "-run-test="+one)
	}
	cmd := c.Command(t.Context(), filepath.Join(programs, "suite.test"), args...)
	cmd.Stdout, cmd.Stderr = log, log
	runErr := cmd.Run()
	text, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	if node, err := os.ReadFile(c.Log()); err == nil {
		_ = os.WriteFile(filepath.Join(out, "gantry.log"), node, 0o644)
	}
	results := read(bytes.NewReader(text))
	if len(results) == 0 {
		t.Fatalf("no test ran: %v\n%s", runErr, text[max(0, len(text)-4000):])
	}
	judge(t, results, allowed(t), one != "")
}

// allowed reads the list: a name, a tab, and why it may fail.
func allowed(t *testing.T) map[string]string {
	t.Helper()
	file, err := os.Open(filepath.Join("..", "lists", "gateway.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	out := map[string]string{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, why, found := strings.Cut(line, "\t")
		if !found || strings.TrimSpace(why) == "" {
			t.Fatalf("lists/gateway.txt: %q has no tab and reason", line)
		}
		out[name] = strings.TrimSpace(why)
	}
	return out
}

// read finds the verdicts of the suite's tests, by name.
func read(from io.Reader) map[string]string {
	verdict := regexp.MustCompile(`^    --- (PASS|FAIL|SKIP): TestGatewayAPI/(\S+) `)
	out := map[string]string{}
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if found := verdict.FindStringSubmatch(lines.Text()); found != nil {
			out[found[2]] = found[1]
		}
	}
	return out
}

// judge counts, and compares with the list.
func judge(t *testing.T, results, allowed map[string]string, one bool) {
	t.Helper()
	names := map[string][]string{}
	for name, verdict := range results {
		names[verdict] = append(names[verdict], name)
	}
	for _, list := range names {
		slices.Sort(list)
	}
	t.Logf("%d passed, %d failed, %d not asked for", len(names["PASS"]), len(names["FAIL"]), len(names["SKIP"]))
	for _, name := range names["FAIL"] {
		if why := allowed[name]; why != "" {
			t.Logf("may fail: %s: %s", name, why)
		} else {
			t.Errorf("failed: %s", name)
		}
	}
	for name := range allowed {
		if verdict := results[name]; verdict != "FAIL" && !one {
			t.Errorf("%s is listed as failing, but its verdict is %q", name, verdict)
		}
	}
}
