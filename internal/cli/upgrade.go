package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/platform/appfile"
	"gantry.dev/gantry/internal/platform/deploy"
	"gantry.dev/gantry/internal/upgrade"
)

const (
	upgradePoll   = 300 * time.Millisecond
	upgradeAnswer = 10 * time.Second // for one short request
	upgradeSlack  = 30 * time.Second // beyond the trial's limit: for the way back
)

// upgrader brings one program to all machines.
type upgrader struct {
	app    *app
	client client.Client
	raw    *rawClient
	file   string
	hash   string
	limit  time.Duration
}

// machine is one machine to upgrade.
type machine struct {
	nodeRow
	before upgrade.Status
	leads  bool
}

// upgradeRow is what "upgrade --json" says of a machine.
type upgradeRow struct {
	Node   string `json:"node"`
	From   string `json:"from"`
	To     string `json:"to"`
	Result string `json:"result"` // upgraded, or "same"
}

func (a *app) upgradeCommand() *cobra.Command {
	t := &appTarget{}
	u := &upgrader{app: a}
	var timeout string
	cmd := &cobra.Command{
		Use: "upgrade [FILE]", Short: "Bring a new gantry to all machines, one at a time", GroupID: groupCluster, Args: atMostOne("FILE"),
		Long: "Bring a new gantry to all machines, one at a time: FILE, or the program that runs this command. Containers go on, and so do requests.\n" +
			"A machine on which the new program is not ready in time goes back to the one before by itself, and the upgrade ends there. The same\n" +
			"command goes on later with the machines that are left. Versions may be one minor version apart; an older FILE is a downgrade.",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if u.limit, err = appfile.ParseDuration(timeout); err != nil || u.limit <= 0 {
				return usage("--timeout %q is not a duration such as 2m", timeout)
			}
			if err := u.open(first(args)); err != nil {
				return err
			}
			if u.client, u.raw, err = a.rawClient(cmd, t); err != nil {
				return err
			}
			return u.run(cmd.Context(), t)
		},
	}
	cmd.Flags().StringVar(&timeout, "timeout", "2m", "how long the new program has on each machine until it is ready")
	return contextFlag(cmd, t)
}

// open finds the program and its hash.
func (u *upgrader) open(file string) (err error) {
	if u.file = file; file == "" {
		if u.file, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
	}
	if u.hash, err = upgrade.HashFile(u.file); err != nil {
		return usage("the program cannot be read: %v", err)
	}
	return nil
}

func (u *upgrader) run(ctx context.Context, t *appTarget) error {
	all, err := u.machines(ctx)
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(all), func(m machine) bool { return m.before.Running.Hash == u.hash })
	if len(left) > 0 {
		if err := u.app.confirm(fmt.Sprintf("Change the program of %d of %d machines, one at a time", len(left), len(all))); err != nil {
			return err
		}
	}
	u.app.announce(t, "upgrade")
	rows := []upgradeRow{}
	for _, m := range all {
		row := upgradeRow{Node: m.Name, From: m.before.Running.Version, To: m.before.Running.Version, Result: "same"}
		if m.before.Running.Hash != u.hash {
			if row.To, err = u.upgrade(ctx, m); err != nil {
				done := slices.Index(left, m)
				return fmt.Errorf("%s: %w\n%d of %d machines have the new program; the same command goes on with the others", m.Name, err, len(all)-len(left)+done, len(all))
			}
			row.Result = "upgraded"
		}
		rows = append(rows, row)
		if !u.app.json {
			if err := u.app.printf("%s\n", rowText(row)); err != nil {
				return err
			}
		}
	}
	if u.app.json {
		return u.app.printJSON(rows)
	}
	return nil
}

func rowText(r upgradeRow) string {
	if r.Result == "same" {
		return r.Node + " runs it already (" + r.From + ")"
	}
	return r.Node + " upgraded from " + r.From + " to " + r.To
}

// machines are all, in the order in which they change: servers that follow, the one that leads, workers.
func (u *upgrader) machines(ctx context.Context) ([]machine, error) {
	nodes, err := listNodes(ctx, u.client)
	if err != nil {
		return nil, deploy.Reached("list the nodes", err)
	}
	leader, err := u.leader(ctx)
	if err != nil {
		return nil, err
	}
	var all []machine
	for _, n := range nodes {
		if !strings.HasPrefix(n.State, "ready") {
			return nil, usage("%s is not ready: an upgrade changes machines that are well; mend it, or \"gantry node rm %s\"", n.Name, n.Name)
		}
		m := machine{nodeRow: n, leads: n.Name == leader}
		if m.before, err = u.status(ctx, n.Name); err != nil {
			if refused, ok := errors.AsType[*answerError](err); ok && (refused.code == http.StatusNotFound || refused.code == http.StatusMethodNotAllowed) {
				return nil, usage("%s runs a gantry that does not know upgrades; replace its program and restart it by hand once", n.Name)
			}
			return nil, deploy.Reached("ask "+n.Name+" what it runs", err)
		}
		all = append(all, m)
	}
	slices.SortStableFunc(all, func(a, b machine) int { return a.turn() - b.turn() })
	return all, nil
}

func (m *machine) turn() int {
	switch {
	case m.Role == join.Server && !m.leads:
		return 0
	case m.Role == join.Server:
		return 1
	}
	return 2
}

// leader is the name of the server that leads.
func (u *upgrader) leader(ctx context.Context) (string, error) {
	members, err := u.raw.servers(ctx)
	if err != nil {
		return "", deploy.Reached("ask who leads", err)
	}
	for _, m := range members {
		if m.Leader {
			return m.Name, nil
		}
	}
	return "", nil
}

func (u *upgrader) status(ctx context.Context, node string) (status upgrade.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, upgradeAnswer)
	defer cancel()
	return status, u.raw.ask(ctx, http.MethodGet, nodePath(node, ""), nil, &status)
}

func nodePath(node, below string) string {
	return "/api/v1/nodes/" + url.PathEscape(node) + "/proxy" + upgrade.Path + below
}

// upgrade changes one machine's program and returns its version.
func (u *upgrader) upgrade(ctx context.Context, m machine) (string, error) {
	u.say("%s: sending the program", m.Name)
	if err := u.send(ctx, m.Name); err != nil {
		return "", fmt.Errorf("send the program: %w", err)
	}
	u.say("%s: restarting", m.Name)
	query := url.Values{"timeout": {u.limit.String()}}
	err := u.raw.ask(ctx, http.MethodPost, nodePath(m.Name, "/"+u.hash)+"?"+query.Encode(), nil, nil)
	if _, refused := errors.AsType[*answerError](err); refused { // a connection that broke may be the restart
		return "", fmt.Errorf("change the program: %w", err)
	}
	waiting, cancel := context.WithTimeout(ctx, u.limit+upgradeSlack)
	defer cancel()
	return u.await(waiting, m)
}

// await waits until a machine runs the new program, and its node is ready; or until it has gone back.
func (u *upgrader) await(ctx context.Context, m machine) (string, error) {
	last := errors.New("it has not stopped yet")
	for lifecycle.Pause(ctx, upgradePoll) {
		status, err := u.status(ctx, m.Name)
		switch {
		case err != nil:
			last = err
			continue
		case status.State == upgrade.Failed && status.Tried == u.hash:
			return "", withCode(int(deploy.CodeUnhealthy), fmt.Errorf("the new program did not work there: %s; it runs %s again", status.Failure, status.Running.Version))
		case status.Running.Hash != u.hash || status.State != upgrade.Done:
			last = errors.New("the new program is not ready yet")
			continue
		}
		if last = u.healthy(ctx, m.Name); last == nil {
			return status.Running.Version, nil
		}
	}
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		return "", ctx.Err()
	}
	return "", withCode(int(deploy.CodeUnhealthy), fmt.Errorf("it did not come back: %w", last))
}

// healthy says what is wrong with the cluster after a change.
func (u *upgrader) healthy(ctx context.Context, changed string) error {
	ctx, cancel := context.WithTimeout(ctx, upgradeAnswer)
	defer cancel()
	nodes, err := listNodes(ctx, u.client)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if !strings.HasPrefix(n.State, "ready") {
			return fmt.Errorf("node %s is not ready after the change of %s", n.Name, changed)
		}
	}
	leader, err := u.leader(ctx)
	if err == nil && leader == "" {
		err = errors.New("no server leads")
	}
	return err
}

// send gives a machine the program, unless it has it.
func (u *upgrader) send(ctx context.Context, node string) error {
	file, err := os.Open(u.file)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	return u.raw.ask(ctx, http.MethodPut, nodePath(node, "/"+u.hash), file, nil)
}

func (u *upgrader) say(format string, args ...any) {
	_, _ = fmt.Fprintf(u.app.env.Stderr, format+"\n", args...)
}
