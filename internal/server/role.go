package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/cli"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/durable"
	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/pki"
	"gantry.dev/gantry/internal/store"
)

// roleFile, in the data dir, is a change of roles that has begun.
const roleFile = "role.json"

// roleChange is what a machine is to become: what was asked of it, and what it needs for that.
type roleChange struct {
	join.RoleRequest

	Worker  join.Membership `json:"worker,omitzero"` // what it is as a worker
	Failure string          `json:"failure,omitempty"`
}

func readRole(c *config.Config) (roleChange, bool, error) {
	text, err := os.ReadFile(c.Path(roleFile))
	if errors.Is(err, fs.ErrNotExist) {
		return roleChange{}, false, nil
	}
	var r roleChange
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return roleChange{}, false, fmt.Errorf("reading what this machine is to become: %w", err)
	}
	return r, true, nil
}

func (r roleChange) write(c *config.Config) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding what this machine is to become: %w", err)
	}
	return durable.WriteFile(c.Path(roleFile), append(text, '\n'), 0o600)
}

func endRole(c *config.Config) error {
	if err := os.Remove(c.Path(roleFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("ending the change of roles: %w", err)
	}
	return nil
}

// promote makes this worker a server, if that was asked for. What fails leaves it the worker that it was.
func promote(ctx context.Context, opts *UpOptions, worker join.Membership) (join.Membership, error) {
	c := &opts.Config
	change, there, err := readRole(c)
	if err != nil || !there || change.Role != join.Server || change.Failure != "" {
		return worker, err
	}
	change.Worker = worker
	if left, err := filepath.Glob(c.Path("etcd", "member", "wal", "*.wal")); err != nil || len(left) > 0 {
		// It had begun, and may have a vote: it goes on, there is no way back.
		member := worker
		member.Role = join.Server
		opts.joining = &joining{member: member, config: c, close: func() {}, promotes: &change, begun: true}
		return member, nil
	}
	if err := os.RemoveAll(c.Path("etcd")); err != nil {
		return worker, fmt.Errorf("preparing to become a server: %w", err)
	}
	token, err := join.ParseToken(change.Token)
	if err == nil {
		opts.Join = &cli.JoinRequest{Address: change.Server, Token: token, Server: true}
		opts.joining, err = joinServer(ctx, opts, &change)
	}
	if err != nil {
		opts.joining = nil
		opts.Logger.Warn("this machine does not become a server", "error", err)
		change.Failure = err.Error()
		return worker, change.write(c)
	}
	return opts.joining.member, nil
}

// promotionFailed takes a promotion back that did not come to its end.
func promotionFailed(ctx context.Context, opts UpOptions, cause error) (join.Membership, error) {
	j := opts.joining
	if err := j.undo(ctx); err != nil {
		opts.Logger.Warn("taking the promotion back", "error", err)
	}
	j.promotes.Failure = fmt.Sprint(cause)
	return j.promotes.Worker, j.promotes.write(&opts.Config)
}

// workerFiles are what a worker has below DATA/pki.
func workerFiles() []string { return []string{"ca.crt", "kubelet-client.pem", "kubelet.pem"} }

// dropServerFiles removes from a folder of keys all that a worker does not have.
func dropServerFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("removing the keys of a server: %w", err)
	}
	for _, entry := range entries {
		if !slices.Contains(workerFiles(), entry.Name()) {
			if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
				return fmt.Errorf("removing the keys of a server: %w", err)
			}
		}
	}
	return nil
}

// writeWorkerFiles keeps the node's own certificates as a worker has them.
func writeWorkerFiles(dir string) error {
	for _, name := range []pki.Leaf{pki.KubeletClient, pki.Kubelet} {
		var text []byte
		for _, ending := range []string{".crt", ".key"} {
			part, err := os.ReadFile(filepath.Join(dir, string(name)+ending))
			if err != nil {
				return fmt.Errorf("keeping the node's certificates: %w", err)
			}
			text = append(text, part...)
		}
		if err := durable.WriteFile(filepath.Join(dir, string(name)+".pem"), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// becomeWorker makes this machine, which was taken out of the servers, the worker that it was to become. False is: that was not asked for.
func becomeWorker(c *config.Config) (bool, error) {
	change, there, err := readRole(c)
	if err != nil || !there || change.Role != join.Worker {
		return false, err
	}
	if err := change.Worker.Write(c.Path(join.MembershipFile)); err != nil {
		return true, err
	}
	err = os.RemoveAll(c.Path("etcd"))
	if err == nil {
		err = dropServerFiles(c.Path("pki"))
	}
	if err == nil {
		if err = os.Remove(c.Path("admin.kubeconfig")); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return true, fmt.Errorf("becoming a worker: %w", err)
	}
	return true, endRole(c)
}

// roles takes changes of this machine's role from the node's API. Who may use it was asked before.
type roles struct {
	config config.Config
	name   string
	cp     *ControlPlane // nil on a worker
	change *cli.Changing
	log    *slog.Logger
}

// ServeHTTP implements http.Handler.
func (s *roles) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var err error
	switch r.Method {
	case http.MethodGet:
		err = s.tell(w)
	case http.MethodPost:
		err = s.begin(w, r)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
	}
}

func (s *roles) role() join.Role {
	if s.cp == nil {
		return join.Worker
	}
	return join.Server
}

func (s *roles) tell(w http.ResponseWriter) error {
	change, _, err := readRole(&s.config)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(join.RoleStatus{Role: s.role(), Failure: change.Failure}) // to one who has gone
	return nil
}

func (s *roles) begin(w http.ResponseWriter, r *http.Request) error {
	change := roleChange{}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&change.RoleRequest); err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	switch {
	case s.change == nil:
		return errNotHere
	case change.Role == s.role():
		return fmt.Errorf("%s is a %s already", s.name, s.role())
	case change.Role == join.Server:
		if err := change.write(&s.config); err != nil {
			return err
		}
		w.WriteHeader(http.StatusAccepted)
		_ = http.NewResponseController(w).Flush() // before all connections are closed
		s.change.Restart()
		return nil
	case change.Role == join.Worker:
		return s.leave(w, r, change)
	}
	return fmt.Errorf("there is no role %q", change.Role)
}

// leave takes this server out of those that keep the data. The rest of the way is that of a server whose store was removed.
func (s *roles) leave(w http.ResponseWriter, r *http.Request, change roleChange) error {
	ctx := context.WithoutCancel(r.Context())
	members, err := s.cp.store.Members(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(members, func(m store.Member) bool { return !m.Self && !m.Learner }) {
		return errors.New("it is the only server")
	}
	others, err := s.others(ctx)
	if err != nil {
		return err
	}
	change.Worker = join.Membership{Role: join.Worker, Servers: others, Settings: s.cp.settings()}
	if err := writeWorkerFiles(s.config.Path("pki")); err != nil {
		return err
	}
	if err := change.write(&s.config); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	_ = http.NewResponseController(w).Flush()
	if err := s.cp.RemoveServer(ctx, s.name); err != nil {
		s.log.Warn("this server does not become a worker", "error", err)
		change.Failure = err.Error()
		if err := change.write(&s.config); err != nil {
			s.log.Warn("that this server does not become a worker is not noted", "error", err)
		}
	}
	return nil
}

// others are where the other servers' API is.
func (s *roles) others(ctx context.Context) ([]string, error) {
	var slice discoveryv1.EndpointSlice
	if err := s.cp.admin.Get(ctx, ctrlclient.ObjectKey{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}, &slice); err != nil {
		return nil, fmt.Errorf("reading where the servers are: %w", err)
	}
	own := s.config.NodeIP.String()
	out := slices.DeleteFunc(addressesOf(&slice), func(at string) bool {
		host, _, err := net.SplitHostPort(at)
		return err != nil || host == own
	})
	if len(out) == 0 {
		return nil, errors.New("no other server is well: " + strings.Join(addressesOf(&slice), ", "))
	}
	return out, nil
}
