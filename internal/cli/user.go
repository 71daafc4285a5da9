package cli

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/platform/access"
	"gantry.dev/gantry/internal/platform/appfile"
	"gantry.dev/gantry/internal/platform/deploy"
)

// accessTo connects to the cluster that a command means.
func (a *app) accessTo(cmd *cobra.Command, t *appTarget) (*access.Access, *rest.Config, error) {
	config, err := a.clusterOf(cmd, t)
	if err != nil {
		return nil, nil, err
	}
	t.cluster = &deploy.Cluster{Host: config.Host}
	out, err := access.Connect(config)
	return out, config, err
}

// accessError gives errors their exit codes.
func accessError(doing string, err error) error {
	if input, ok := errors.AsType[*access.InputError](err); ok {
		return usage("%w", input)
	}
	return deploy.Reached(doing, err)
}

func (a *app) userCommand() *cobra.Command {
	cmd := parent("user", "Add, list and remove people and CI jobs that may use the cluster", a.userAddCommand(), a.userListCommand(), a.userRemoveCommand())
	cmd.GroupID = groupCluster
	return cmd
}

func contextFlag(cmd *cobra.Command, t *appTarget) *cobra.Command {
	cmd.Flags().StringVar(&t.context, "context", "", "the cluster, one of \"gantry context ls\" (default: the current one)")
	return cmd
}

// userAdded is what "user add --json" prints.
type userAdded struct {
	Name   string       `json:"name"`
	Grant  access.Grant `json:"grant"`
	Token  string       `json:"token,omitempty"`
	Server string       `json:"server"`
	Login  string       `json:"login,omitempty"`
}

func (a *app) userAddCommand() *cobra.Command {
	t := &appTarget{}
	var role, project, application, expires string
	var everywhere, renew bool
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Add a person or a CI job, or give one another role", Args: exactArgs("the NAME"),
		Long: "Add a person or a CI job. Its token is printed once and kept nowhere. A user that is there gets another role and keeps its token.\n\n" +
			"viewer reads everything but secrets; deployer deploys and sets secrets; admin removes, too. A role is of a project (-p), of one\n" +
			"application in it (--app), or of all projects (--all-projects: admin may then do everything).",
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		parsed, err := access.ParseRole(role)
		if err != nil {
			return usage("--role: %w", err)
		}
		req := access.AddRequest{Name: args[0], NewToken: renew, Grant: access.Grant{Role: parsed, Project: project, App: application}}
		if everywhere {
			if application != "" || cmd.Flags().Changed("project") {
				return usage("--all-projects goes with neither -p nor --app")
			}
			req.Grant.Project = ""
		}
		if expires != "" {
			if req.Lifetime, err = appfile.ParseDuration(expires); err != nil || req.Lifetime <= 0 {
				return usage("--expires %q is not a duration such as 90d", expires)
			}
		}
		users, config, err := a.accessTo(cmd, t)
		if err != nil {
			return err
		}
		a.announce(t, "user "+req.Name)
		token, err := users.AddUser(cmd.Context(), req)
		if err != nil {
			return accessError("add the user", err)
		}
		return a.printUser(t, req, token, config)
	}
	cmd.Flags().StringVar(&role, "role", string(access.Deployer), "viewer, deployer or admin")
	cmd.Flags().StringVar(&application, "app", "", "the only application that the role is for")
	cmd.Flags().StringVarP(&project, "project", "p", defaultProject, "the project that the role is for")
	cmd.Flags().BoolVar(&everywhere, "all-projects", false, "the role is for the whole cluster")
	cmd.Flags().StringVar(&expires, "expires", "", "when the token ends, such as 90d (default: never)")
	cmd.Flags().BoolVar(&renew, "new-token", false, "give a user that is there another token; the old one ends")
	return contextFlag(cmd, t)
}

// printUser prints the token on standard output and what to do with it beside.
func (a *app) printUser(t *appTarget, req access.AddRequest, token string, config *rest.Config) error {
	server := config.Host
	if t.server != "" {
		server = t.server
	}
	login := fmt.Sprintf("gantry login %s", server)
	if print := fingerprint(config.CAData); print != "" {
		login += " --fingerprint " + print
	}
	if a.json {
		out := userAdded{Name: req.Name, Grant: req.Grant, Token: token, Server: server}
		if token != "" {
			out.Login = login
		}
		return a.printJSON(out)
	}
	if token == "" {
		return a.printf("%s is now %s, too; the token stays\n", req.Name, req.Grant)
	}
	_, _ = fmt.Fprintf(a.env.Stderr, "%s is %s. The token is shown this once; whoever has it logs in with\n  %s < TOKEN-FILE\n", req.Name, req.Grant, login)
	return a.printf("%s\n", token)
}

// fingerprint is the SHA-256 of the first certificate of a PEM text, as --fingerprint takes it.
func fingerprint(text []byte) string {
	block, _ := pem.Decode(text)
	if block == nil {
		return ""
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return ""
	}
	sum := sha256.Sum256(block.Bytes)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (a *app) userListCommand() *cobra.Command {
	t := &appTarget{}
	return contextFlag(&cobra.Command{
		Use: "ls", Short: "List users and what they may", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			users, _, err := a.accessTo(cmd, t)
			if err != nil {
				return err
			}
			list, err := users.Users(cmd.Context())
			if err != nil {
				return accessError("list the users", err)
			}
			if a.json {
				return a.printJSON(list)
			}
			rows := [][]string{{"USER", "MAY", "TOKEN ENDS", "AGE"}}
			for _, user := range list {
				var may []string
				for _, grant := range user.Grants {
					may = append(may, grant.String())
				}
				ends := "never"
				if user.Expires != nil {
					ends = user.Expires.Local().Format("2 Jan 2006 15:04")
				}
				rows = append(rows, []string{user.Name, strings.Join(may, ", "), ends, age(time.Since(user.Created))})
			}
			return a.printTable(rows)
		},
	}, t)
}

func (a *app) userRemoveCommand() *cobra.Command {
	t := &appTarget{}
	return contextFlag(&cobra.Command{
		Use: "rm NAME", Short: "Remove a user; the token ends at once", Args: exactArgs("the NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			users, _, err := a.accessTo(cmd, t)
			if err != nil {
				return err
			}
			a.announce(t, "user "+args[0])
			if err := a.confirm("Remove the user " + args[0]); err != nil {
				return err
			}
			if err := users.RemoveUser(cmd.Context(), args[0]); err != nil {
				return accessError("remove the user", err)
			}
			return a.printf("%s is removed; the token is worth nothing now\n", args[0])
		},
	}, t)
}

func (a *app) projectCommand() *cobra.Command {
	cmd := parent("project", "Make, list and remove projects, which are namespaces", a.projectCreateCommand(), a.projectListCommand(), a.projectRemoveCommand())
	cmd.GroupID = groupCluster
	return cmd
}

func (a *app) projectCreateCommand() *cobra.Command {
	t := &appTarget{}
	return contextFlag(&cobra.Command{
		Use: "create NAME", Short: "Make a project", Args: exactArgs("the NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			projects, _, err := a.accessTo(cmd, t)
			if err != nil {
				return err
			}
			a.announce(t, "project "+args[0])
			if err := projects.CreateProject(cmd.Context(), args[0]); err != nil {
				return accessError("make the project", err)
			}
			return a.printf("project %s is there; deploy to it with -p %s\n", args[0], args[0])
		},
	}, t)
}

func (a *app) projectListCommand() *cobra.Command {
	t := &appTarget{}
	return contextFlag(&cobra.Command{
		Use: "ls", Short: "List projects", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			projects, _, err := a.accessTo(cmd, t)
			if err != nil {
				return err
			}
			list, err := projects.Projects(cmd.Context())
			if err != nil {
				return accessError("list the projects", err)
			}
			if a.json {
				return a.printJSON(list)
			}
			rows := [][]string{{"PROJECT", "APPS", "AGE"}}
			for _, p := range list {
				name := p.Name
				if p.Ending {
					name += " (ending)"
				}
				rows = append(rows, []string{name, fmt.Sprint(p.Apps), age(time.Since(p.Created))})
			}
			return a.printTable(rows)
		},
	}, t)
}

func (a *app) projectRemoveCommand() *cobra.Command {
	t := &appTarget{}
	return contextFlag(&cobra.Command{
		Use: "rm NAME", Short: "Remove a project with all that is in it", Args: exactArgs("the NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			projects, _, err := a.accessTo(cmd, t)
			if err != nil {
				return err
			}
			contents, err := projects.ContentsOf(cmd.Context(), args[0])
			if err != nil {
				return accessError("look into the project", err)
			}
			a.announce(t, "project "+args[0])
			for _, part := range []struct {
				what  string
				names []string
			}{{"applications", contents.Apps}, {"volumes, with their data", contents.Volumes}, {"secrets", contents.Secrets}} {
				if len(part.names) > 0 {
					_, _ = fmt.Fprintf(a.env.Stderr, "these %s go: %s\n", part.what, strings.Join(part.names, ", "))
				}
			}
			if err := a.confirm("Remove the project " + args[0] + " for ever"); err != nil {
				return err
			}
			if err := projects.RemoveProject(cmd.Context(), args[0]); err != nil {
				return accessError("remove the project", err)
			}
			return a.printf("project %s is going\n", args[0])
		},
	}, t)
}
