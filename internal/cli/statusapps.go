package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
)

// appStatusRow is one application in "status".
type appStatusRow struct {
	Project   string   `json:"project"`
	Name      string   `json:"name"`
	Phase     string   `json:"phase"`
	Release   int64    `json:"release"`
	Latest    int64    `json:"latest"`
	Ready     int32    `json:"ready"`
	Desired   int32    `json:"desired"`
	Processes []string `json:"processes,omitempty"` // of those with fewer than they should have: "worker 0 of 2"
	URLs      []string `json:"urls,omitempty"`
	Trouble   string   `json:"trouble,omitempty"`
}

// nodeCost is what a node spends, as the cluster tells it.
type nodeCost struct {
	Node     string        `json:"node"`
	Gantry   nodeUsage     `json:"gantry"`
	Programs []programCost `json:"programs,omitempty"`
	Apps     nodeUsage     `json:"apps"`
	Pods     int           `json:"pods"`
	Disk     struct {
		UsedBytes      int64 `json:"usedBytes"`
		AvailableBytes int64 `json:"availableBytes"`
		CapacityBytes  int64 `json:"capacityBytes"`
	} `json:"disk"`
}

type nodeUsage struct {
	MemoryBytes int64   `json:"memoryBytes"`
	CPUs        float64 `json:"cpus"`
}

type programCost struct {
	Name      string `json:"name"`
	Processes int    `json:"processes"`
	nodeUsage
}

// certificate is one whose end is known.
type certificate struct {
	Name    string    `json:"name"` // a host, or "the API"
	Expires time.Time `json:"expires"`
}

// What the Secrets of certificates are marked with; see docs/user/certificates.md.
const (
	certificateLabel   = "gateway.gantry.dev/certificate"
	certificateHost    = "gateway.gantry.dev/host"
	certificateExpires = "gateway.gantry.dev/expires"
)

// readPlatform adds to doc what a cluster with the platform has. What this user may not read, or the cluster has not, is left out.
func (doc *statusDocument) readPlatform(ctx context.Context, cluster *deploy.Cluster) error {
	apps, err := cluster.Apps(ctx, "")
	if err == nil {
		for i := range apps {
			doc.Apps = append(doc.Apps, statusOfApp(&apps[i]))
		}
	}
	if body, err := cluster.Open(ctx, "/apis/logs.gantry.dev/v1alpha1/nodes"); err == nil {
		err = json.NewDecoder(body).Decode(&doc.Costs)
		_ = body.Close()
		if err != nil {
			return fmt.Errorf("read what the nodes spend: %w", err)
		}
	}
	var secrets corev1.SecretList
	if err := cluster.Client.List(ctx, &secrets, client.InNamespace(v1alpha1.PlatformNamespace), client.HasLabels{certificateLabel}); err == nil {
		for i := range secrets.Items {
			notes := secrets.Items[i].Annotations
			if expires, err := time.Parse(time.RFC3339, notes[certificateExpires]); err == nil {
				doc.Certificates = append(doc.Certificates, certificate{notes[certificateHost], expires})
			}
		}
	}
	slices.SortFunc(doc.Certificates, func(a, b certificate) int {
		return cmp.Or(a.Expires.Compare(b.Expires), strings.Compare(a.Name, b.Name))
	})
	return nil
}

// leafOf is the certificate that the API server showed.
func leafOf(state *tls.ConnectionState) (certificate, bool) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return certificate{}, false
	}
	return certificate{"the API", state.PeerCertificates[0].NotAfter}, true
}

// statusOfApp is pure.
func statusOfApp(one *v1alpha1.App) appStatusRow {
	s := &one.Status
	row := appStatusRow{Project: one.Namespace, Name: one.Name, Phase: phaseOf(one), Release: s.Release, Latest: s.Latest, URLs: s.URLs}
	for _, name := range sortedKeys(s.Processes) {
		p := s.Processes[name]
		row.Ready += p.Ready
		row.Desired += p.Desired
		if p.Ready < p.Desired {
			row.Processes = append(row.Processes, fmt.Sprintf("%s %d of %d", name, p.Ready, p.Desired))
		}
	}
	row.Trouble = troubleOf(one, row.Processes)
	return row
}

// troubleOf says in a few words what is wrong; empty is nothing.
func troubleOf(one *v1alpha1.App, short []string) string {
	switch phaseOf(one) {
	case v1alpha1.AppRemoved:
		return "removed; back by: gantry app undo " + one.Name
	case v1alpha1.AppSleeping:
		return ""
	}
	if one.Status.Message != "" {
		return one.Status.Message
	}
	if len(short) > 0 {
		return "ready: " + strings.Join(short, ", ")
	}
	for _, name := range sortedKeys(one.Spec.Addons) {
		if s := one.Status.Addons[name]; !s.Ready {
			return "addon " + name + ": " + cmp.Or(s.Message, "it is being made")
		}
	}
	for _, domain := range one.Status.Domains {
		if !domain.Ready {
			return domain.Name + ": " + cmp.Or(domain.Message, "not ready")
		}
	}
	return ""
}

// appTable is a line an application; what is wrong stands below its line, whole.
func appTable(apps []appStatusRow) [][]string {
	rows := [][]string{{"APP", "STATE", "RELEASE", "READY", "ADDRESS"}}
	for i := range apps {
		one := &apps[i]
		name := one.Name
		if one.Project != defaultProject {
			name = one.Project + "/" + one.Name
		}
		rows = append(rows, []string{name, strings.ToLower(one.Phase), versionText(one.Release), fmt.Sprintf("%d/%d", one.Ready, one.Desired), cmp.Or(first(one.URLs), "-")})
	}
	return rows
}

// costRows say what Gantry costs beside the applications.
func costRows(costs []nodeCost) (rows [][]string) {
	var gantry, apps nodeUsage
	var programs = map[string]int64{}
	counts := map[string]int{}
	pods := 0
	for i := range costs {
		gantry.add(costs[i].Gantry)
		apps.add(costs[i].Apps)
		pods += costs[i].Pods
		for _, p := range costs[i].Programs {
			programs[p.Name] += p.MemoryBytes
			counts[p.Name] += p.Processes
		}
	}
	if len(costs) == 0 {
		return nil
	}
	var parts []string
	for _, name := range sortedKeys(programs) {
		part := strings.TrimPrefix(name, "gantry-")
		if counts[name] > 1 {
			part = fmt.Sprintf("%d %s", counts[name], part)
		}
		parts = append(parts, part+" "+wholeSize(programs[name]))
	}
	rows = append(rows,
		[]string{"gantry", gantry.String(), strings.Join(parts, ", ")},
		[]string{"apps", apps.String(), fmt.Sprintf("in %d pods", pods)})
	for i := range costs {
		disk := &costs[i].Disk
		if disk.CapacityBytes == 0 {
			continue
		}
		where := ""
		if len(costs) > 1 {
			where = " on " + costs[i].Node
		}
		text := fmt.Sprintf("%s free of %s%s", wholeSize(disk.AvailableBytes), wholeSize(disk.CapacityBytes), where)
		if disk.AvailableBytes*10 < disk.CapacityBytes {
			text += ": deploys are refused below 10 %; free some: gantry image prune"
		}
		rows = append(rows, []string{"disk", text})
	}
	return rows
}

func (u *nodeUsage) add(other nodeUsage) {
	u.MemoryBytes += other.MemoryBytes
	u.CPUs += other.CPUs
}

// String is "143 MB, 1.2 % of a CPU".
func (u nodeUsage) String() string {
	return fmt.Sprintf("%s, %.1f %% of a CPU", wholeSize(u.MemoryBytes), u.CPUs*100)
}

// wholeSize is a size without what nobody needs to know.
func wholeSize(bytes int64) string {
	if bytes >= 10e9 {
		return fmt.Sprintf("%.0f GB", float64(bytes)/1e9)
	}
	if bytes >= 1e9 {
		return fmt.Sprintf("%.1f GB", float64(bytes)/1e9)
	}
	return fmt.Sprintf("%.0f MB", float64(bytes)/1e6)
}

// certificateRows say until when certificates hold: the API's, and the first of the domains' to end.
func certificateRows(list []certificate, now time.Time) (rows [][]string) {
	day := func(c certificate) string {
		text := "until " + c.Expires.UTC().Format("2 January 2006")
		if left := c.Expires.Sub(now); left < 0 {
			text = "ended " + c.Expires.UTC().Format("2 January 2006") + ": see gantry why app/NAME"
		} else if left < 7*24*time.Hour {
			text += fmt.Sprintf(", in %s", age(left))
		}
		return text
	}
	label := "certs"
	hosts := 0
	for _, c := range list {
		if c.Name == "the API" {
			rows = append(rows, []string{label, c.Name, day(c)})
			label = ""
		} else {
			hosts++
		}
	}
	shown := 0
	for _, c := range list { // they are sorted by their end
		if c.Name == "the API" || shown == 1 && c.Expires.After(now.Add(14*24*time.Hour)) {
			continue
		}
		name := c.Name
		if shown == 0 && hosts > 1 {
			name = fmt.Sprintf("%s, the first of %d", c.Name, hosts)
		}
		rows = append(rows, []string{label, name, day(c)})
		label, shown = "", shown+1
	}
	return rows
}
