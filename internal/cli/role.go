package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/platform/appfile"
	"gantry.dev/gantry/internal/platform/deploy"
)

// roleTokenLife is longer than any change of roles takes.
const roleTokenLife = 30 * time.Minute

// roleCommand is "node promote" or "node demote".
func (a *app) roleCommand(use, short, long string, to join.Role) *cobra.Command {
	t := &appTarget{}
	var timeout string
	cmd := &cobra.Command{
		Use: use + " NAME", Short: short, Long: long, Args: exactArgs("the node's NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := appfile.ParseDuration(timeout)
			if err != nil || limit <= 0 {
				return usage("--timeout %q is not a duration such as 2m", timeout)
			}
			c, raw, err := a.rawClient(cmd, t)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			return a.changeRole(ctx, c, raw, args[0], to)
		},
	}
	cmd.Flags().StringVar(&timeout, "timeout", "2m", "how long it may take")
	return contextFlag(cmd, t)
}

func (a *app) nodePromoteCommand() *cobra.Command {
	return a.roleCommand("promote", "Make a worker a server", "Make a worker a server: it gets the cluster's data and keys, then a vote. Its containers go on. Three servers survive the loss\n"+
		"of one; two are no safer than one.", join.Server)
}

func (a *app) nodeDemoteCommand() *cobra.Command {
	return a.roleCommand("demote", "Make a server a worker", "Make a server a worker: it leaves those that keep the data, and forgets the cluster's keys. Its containers go on. Images, git\n"+
		"repositories and backups that lie on it alone are not served any more.", join.Worker)
}

func rolePath(node string) string {
	return "/api/v1/nodes/" + url.PathEscape(node) + "/proxy" + join.RolePath
}

// changeRole asks a machine to take a role and waits until it has.
func (a *app) changeRole(ctx context.Context, c client.Client, raw *rawClient, name string, to join.Role) error {
	if _, err := getNode(ctx, c, name); err != nil {
		return err
	}
	now, err := raw.firstRole(ctx, name)
	if err != nil {
		return deploy.Reached("ask "+name+" for its role", err)
	}
	if now.Role == to {
		return a.printf("%s is a %s already\n", name, to)
	}
	if to == join.Worker {
		if err := a.confirm("Take server " + name + " out of those that keep the cluster's data"); err != nil {
			return err
		}
	}
	request := join.RoleRequest{Role: to}
	if to == join.Server {
		made, err := join.CreateToken(ctx, c, join.Server, roleTokenLife)
		if err != nil {
			return deploy.Reached("make a token", err)
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if err := join.RevokeToken(ctx, c, made.Token.ID); err != nil {
				a.warn("the token %s is good until %s: %v", made.Token.ID, made.Expires.Format(time.RFC3339), err)
			}
		}()
		request.Server, request.Token = made.Servers[0], made.Token.String()
	}
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	err = raw.ask(ctx, http.MethodPost, rolePath(name), bytes.NewReader(body), nil)
	if refused, ok := errors.AsType[*answerError](err); ok { // a connection that broke may be the restart
		return fmt.Errorf("%s does not become a %s: %w", name, to, refused)
	}
	if err := a.awaitRole(ctx, c, raw, name, to); err != nil {
		return err
	}
	return a.printf("%s is a %s now\n", name, to)
}

// awaitRole waits until the machine, the store's members and the node say that it is done.
func (a *app) awaitRole(ctx context.Context, c client.Client, raw *rawClient, name string, to join.Role) error {
	last := errors.New("it has not begun")
	for lifecycle.Pause(ctx, upgradePoll) {
		var failed bool
		if failed, last = raw.hasRole(ctx, c, name, to); failed || last == nil {
			break
		}
	}
	if last == nil {
		return nil
	}
	return withCode(int(deploy.CodeUnhealthy), fmt.Errorf("%s is not a %s: %w", name, to, last))
}

// hasRole says what is missing until a machine has a role; failed is: it will not get it.
func (c *rawClient) hasRole(ctx context.Context, objects client.Client, name string, want join.Role) (failed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, upgradeAnswer)
	defer cancel()
	status, err := c.role(ctx, name)
	if err != nil {
		return false, err
	}
	if status.Failure != "" {
		return true, errors.New(status.Failure)
	}
	members, err := c.servers(ctx)
	if err != nil {
		return false, err
	}
	has := false
	for _, m := range members {
		has = has || m.Name == name && !m.Learner
	}
	if status.Role != want || has != (want == join.Server) {
		return false, fmt.Errorf("it is a %s, and has a vote: %v", status.Role, has)
	}
	node, err := getNode(ctx, objects, name)
	if err == nil && !isReady(node) {
		err = errors.New("its node is not ready")
	}
	return false, err
}

// firstRole asks until the machine answers: one that has just joined waits for its certificate.
func (c *rawClient) firstRole(ctx context.Context, node string) (join.RoleStatus, error) {
	patience, cancel := context.WithTimeout(ctx, upgradeAnswer)
	defer cancel()
	for {
		status, err := c.role(ctx, node)
		refused, ok := errors.AsType[*answerError](err)
		if err == nil || !ok || refused.code < http.StatusInternalServerError || !lifecycle.Pause(patience, upgradePoll) {
			return status, err
		}
	}
}

func (c *rawClient) role(ctx context.Context, node string) (status join.RoleStatus, err error) {
	return status, c.ask(ctx, http.MethodGet, rolePath(node), nil, &status)
}
