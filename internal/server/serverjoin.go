package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/durable"
	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/pki"
	"gantry.dev/gantry/internal/store"
)

// undoLimit is how long a failed join tries to take back what it began.
const undoLimit = 10 * time.Second

// encryptionName is the file of the keys of Secrets, beside the authorities.
const encryptionName = "encryption.yaml"

// bundleNames are the files, below DATA/pki, that servers of one cluster share.
func bundleNames() []string {
	names := []string{"sa.key", "sa.pub", encryptionName}
	for _, ca := range []pki.CA{pki.ClusterCA, pki.FrontProxyCA, pki.EtcdCA} {
		names = append(names, string(ca)+".crt", string(ca)+".key")
	}
	return names
}

// readBundle is what a further server is given. encryption is the file with the keys of Secrets.
func readBundle(dir, encryption string) (map[string]bundleFile, error) {
	files := make(map[string]bundleFile)
	for _, name := range bundleNames() {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if name == encryptionName {
			path = encryption
		}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var data []byte
		if err == nil {
			data, err = os.ReadFile(path)
		}
		if err != nil {
			return nil, fmt.Errorf("reading what servers share: %w", err)
		}
		files[name] = bundleFile{Mode: uint32(info.Mode().Perm()), Data: data}
	}
	return files, nil
}

// writeBundle keeps what other servers share. Names are those that a bundle has, no others.
func writeBundle(dir string, files map[string]bundleFile) error {
	known := bundleNames()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !slices.Contains(known, name) {
			return fmt.Errorf("the servers share a file that this version does not know: %s", name)
		}
		if err := durable.WriteFile(filepath.Join(dir, filepath.FromSlash(name)), files[name].Data, fs.FileMode(files[name].Mode).Perm()); err != nil {
			return err
		}
	}
	return nil
}

// joining is a join of a server that has begun.
type joining struct {
	member  join.Membership
	members []store.Member
	id      string // of the store's new member
	config  *config.Config
	api     join.API
	close   func()

	promotes *roleChange // a worker that becomes a server; nil: a machine that had nothing
	begun    bool        // an earlier start began it: there is no way back

	finished atomic.Bool
}

// others are the members of the store that is joined; none where nothing is joined.
func (j *joining) others() []store.Member {
	if j == nil {
		return nil
	}
	return j.members
}

// wait finishes the join when the store has a vote, then waits for the end.
func (j *joining) wait(ctx context.Context, steps *lifecycle.Steps, served <-chan struct{}) error {
	if j == nil {
		<-ctx.Done()
		return nil
	}
	end := steps.Begin("store", "has all data, and a vote")
	select {
	case <-served:
	case <-ctx.Done():
		end(ctx.Err())
		return nil
	}
	err := j.done()
	end(err)
	if err == nil {
		<-ctx.Done()
	}
	return err
}

// joinServer makes this machine a server of a cluster: it believes the cluster, takes what servers share, and has its store
// added as one that learns. What is left is to start it, then to call done; or undo. promotes is nil for a machine that had nothing.
func joinServer(ctx context.Context, opts *UpOptions, promotes *roleChange) (_ *joining, err error) {
	c, request := &opts.Config, opts.Join
	peer := storePeer(c)
	if peer == nil {
		return nil, errors.New("this machine has no address at which the other servers reach it; give one with --node-ip")
	}
	j := &joining{member: join.Membership{Role: join.Server, Servers: []string{request.Address}}, config: c, close: func() {}, promotes: promotes}
	end := opts.Steps.Begin("cluster", "found")
	cluster, err := join.Discover(ctx, request.Address, request.Token.Pin)
	if err == nil {
		transport := join.NewServers(request.Address).Transport(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cluster.Pool()})
		j.close = transport.CloseIdleConnections
		j.api = join.API{Transport: transport, Token: request.Token.Bootstrap()}
		j.member.Settings, err = j.api.Settings(ctx)
		if err = tokenError(request, err); err == nil {
			err = errors.Join(agree(c, j.member.Settings), sameCluster(opts.Version, j.member.Settings))
		}
	}
	end(err)
	if err != nil {
		j.close()
		return nil, err
	}
	end = opts.Steps.Begin("keys", "taken over")
	var files map[string]bundleFile
	if err = serverTokenError(request.Token.ID, j.api.Do(ctx, http.MethodGet, bundlePath, nil, &files)); err == nil {
		err = writeBundle(c.Path("pki"), files)
	}
	end(err)
	if err != nil {
		return nil, errors.Join(err, j.undo(ctx))
	}
	end = opts.Steps.Begin("store", "added, as one that learns")
	var answer serverAnswer
	err = j.api.Do(ctx, http.MethodPost, serversPath, serverRequest{Name: opts.Identity.Name, PeerURL: peer.URL, Promote: promotes != nil}, &answer)
	end(err)
	if err != nil {
		return nil, errors.Join(err, j.undo(ctx))
	}
	j.id, j.members = answer.ID, answer.Members
	return j, nil
}

// serverTokenError says what it means when a token does not open the bundle.
func serverTokenError(id string, err error) error {
	if refused, ok := errors.AsType[*join.RefusedError](err); ok && refused.Code == http.StatusForbidden {
		return fmt.Errorf("the token %s is not for joining as a server; \"gantry token create --server\" makes one", id)
	}
	return err
}

// done writes down what this machine is now.
func (j *joining) done() error {
	defer j.close()
	if err := j.member.Write(j.config.Path(join.MembershipFile)); err != nil {
		return err
	}
	j.finished.Store(true)
	if j.promotes != nil {
		return errors.Join(endRole(j.config), os.RemoveAll(j.config.Path("known")))
	}
	return nil
}

// undo takes back what the join began, so that it can be tried again.
func (j *joining) undo(ctx context.Context) error {
	defer j.close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	var err error
	if j.id != "" {
		if err = j.api.Do(ctx, http.MethodDelete, learnersPath+j.id, nil, nil); err != nil {
			err = fmt.Errorf("taking the learner %s back: %w", j.id, err)
		}
	}
	if j.promotes != nil {
		return errors.Join(err, os.RemoveAll(j.config.Path("etcd")), dropServerFiles(j.config.Path("pki")))
	}
	for _, dir := range []string{"etcd", "pki"} {
		err = errors.Join(err, os.RemoveAll(j.config.Path(dir)))
	}
	return err
}
