package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"gantry.dev/gantry/internal/backup"
	"gantry.dev/gantry/internal/cli"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/durable"
	"gantry.dev/gantry/internal/images"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/store"
)

// Names in the data dir that a restore makes.
const (
	// restoringDir is there while a restore is on its way: the data dir is no use then.
	restoringDir = ".restoring"
	// restoredDir has what is brought back only when pods run: the dumps of addons, and the list of them.
	restoredDir  = "restored"
	restoredList = "dumps.json"
)

// CheckRestored refuses a data dir whose restore did not come to its end.
func CheckRestored(dataDir string) error {
	if _, err := os.Stat(filepath.Join(dataDir, restoringDir)); err == nil {
		return fmt.Errorf("the restore into %s did not come to its end: run \"gantry restore\" again, which begins anew", dataDir)
	}
	return nil
}

// unpacked is a backup on the disk.
type unpacked struct {
	dir      string
	manifest backup.Manifest
	restored store.Restored
	images   []images.Used
	odd      []string // files that this version has no use for
}

// unpack reads a whole backup into an empty folder that is laid out as a data dir. Without an error everything is there and
// is what was written.
func unpack(ctx context.Context, src io.Reader, secret, dir string) (*unpacked, error) {
	reader, err := backup.NewReader(src, secret)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	u := &unpacked{dir: dir}
	for {
		name, content, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = u.file(ctx, name, content)
		}
		if errors.Is(err, backup.ErrAbandoned) {
			continue // the manifest says so
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, fmt.Errorf("unpacking the backup: %w", err)
		}
	}
	u.manifest = *reader.Manifest()
	if u.restored.Revision == 0 {
		return nil, fmt.Errorf("%w: there is no snapshot of the store in it", backup.ErrBroken)
	}
	if err := u.putImages(ctx); err != nil {
		return nil, err
	}
	if len(u.manifest.Dumps) > 0 {
		text, err := json.Marshal(u.manifest.Dumps)
		if err != nil {
			return nil, fmt.Errorf("listing dumps: %w", err)
		}
		if err := durable.WriteFile(filepath.Join(dir, restoredDir, restoredList), text, 0o600); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// file brings one file of the backup to its place.
func (u *unpacked) file(ctx context.Context, name string, content io.Reader) (err error) {
	folder, base := filepath.Split(filepath.FromSlash(name))
	switch {
	case name == backup.Snapshot:
		u.restored, err = store.Restore(ctx, content, store.RestoreOptions{Dir: filepath.Join(u.dir, "etcd")})
		return err
	case name == backup.Encryption:
		return write(ctx, filepath.Join(u.dir, "pki", base), content)
	case strings.HasPrefix(name, backup.KeysDir):
		return write(ctx, filepath.Join(u.dir, "pki", filepath.FromSlash(strings.TrimPrefix(name, backup.KeysDir))), content)
	case name == backup.ImagesList:
		if err := json.NewDecoder(content).Decode(&u.images); err != nil {
			return fmt.Errorf("reading the list of images: %w", err)
		}
		return nil
	case strings.HasPrefix(name, backup.BlobsDir):
		return u.blob(ctx, base, content)
	case strings.HasPrefix(name, backup.DumpsDir):
		return write(ctx, filepath.Join(u.dir, restoredDir, folder, base), content)
	case strings.HasPrefix(name, backup.VolumesDir):
		return backup.UnpackTree(ctx, content, filepath.Join(u.dir, "volumes", strings.TrimSuffix(base, ".tar")))
	case name == backup.GitDir:
		return backup.UnpackTree(ctx, content, filepath.Join(u.dir, "git"))
	}
	u.odd = append(u.odd, name)
	return nil
}

// write copies to a new file that only root reads.
func write(ctx context.Context, path string, content io.Reader) error {
	if err := durable.MkdirAll(filepath.Dir(path)); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	_, err = io.Copy(file, content)
	if err = errors.Join(err, ctx.Err(), file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("unpacking %s: %w", filepath.Base(path), err)
	}
	return nil
}

func (u *unpacked) blobPath(d digest.Digest) string {
	return filepath.Join(u.dir, "blobs", d.Algorithm().String()+"-"+d.Encoded())
}

// blob keeps the content of images until it is known which repository has it.
func (u *unpacked) blob(ctx context.Context, name string, content io.Reader) error {
	d, err := digest.Parse(strings.Replace(name, "-", ":", 1))
	if err != nil {
		return fmt.Errorf("%w: %q is no content of an image", backup.ErrBroken, name)
	}
	verifier := d.Verifier()
	if err := write(ctx, u.blobPath(d), io.TeeReader(content, verifier)); err != nil {
		return err
	}
	if !verifier.Verified() {
		return fmt.Errorf("%w: the content of %s is another", backup.ErrBroken, d)
	}
	return nil
}

// putImages fills the registry.
func (u *unpacked) putImages(ctx context.Context) error {
	registry, err := images.NewStore(images.StoreOptions{Dir: filepath.Join(u.dir, "registry"), MinFreePercent: 1})
	if err != nil {
		return err
	}
	for _, used := range u.images {
		if err := registry.Take(ctx, used, u.blobPath, func(d digest.Digest) ([]byte, error) { return os.ReadFile(u.blobPath(d)) }); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(u.dir, "blobs")); err != nil {
		return fmt.Errorf("unpacking images: %w", err)
	}
	return nil
}

// restore makes a data dir of a backup. Until everything is there and has been tried out, nothing but restoringDir is in it.
func restore(ctx context.Context, run cli.RestoreRequest) (cli.RestoreResult, error) {
	c := run.Config
	if err := clearForRestore(c.DataDir); err != nil {
		return cli.RestoreResult{}, err
	}
	staging := filepath.Join(c.DataDir, restoringDir)
	if err := durable.MkdirAll(staging); err != nil {
		return cli.RestoreResult{}, err
	}
	result, err := restoreInto(ctx, run, staging)
	if err != nil {
		// Nothing was there before, so nothing of it stays.
		return result, errors.Join(err, lifecycle.Purge(staging), os.RemoveAll(staging))
	}
	return result, settleRestore(c.DataDir, staging)
}

func restoreInto(ctx context.Context, run cli.RestoreRequest, staging string) (cli.RestoreResult, error) {
	c := run.Config
	end := run.Steps.Begin("backup", "unpacked")
	u, err := unpack(ctx, run.Source, run.Secret, staging)
	end(err)
	if err != nil {
		return cli.RestoreResult{}, err
	}
	if err := sameRanges(&c, &u.manifest); err != nil {
		return cli.RestoreResult{}, err
	}
	identity, err := lifecycle.EnsureIdentity(staging, c.NodeName, c.Given(config.KeyNodeName), lifecycle.MachineID("/"))
	if err != nil {
		return cli.RestoreResult{}, err
	}
	end = run.Steps.Begin("cluster", "moved to this machine")
	moved := move{node: identity.Name, volumes: c.Path("volumes"), has: map[string]bool{}}
	for _, v := range u.manifest.Volumes {
		moved.has[v.Folder] = true
	}
	err = openScratch(ctx, u, run.Logger, moved.apply)
	end(err)
	if err != nil {
		return cli.RestoreResult{}, err
	}
	return cli.RestoreResult{
		Manifest: u.manifest, NodeName: identity.Name, Revision: u.restored.Now, Moved: moved.said,
	}, nil
}

// sameRanges refuses settings under which the restored objects would not fit.
func sameRanges(c *config.Config, m *backup.Manifest) error {
	for _, pair := range []struct{ key, want, have string }{
		{config.KeyPodCIDR, m.PodCIDR, c.PodCIDR.String()}, {config.KeyServiceCIDR, m.ServiceCIDR, c.ServiceCIDR.String()},
		{config.KeyClusterDomain, m.ClusterDomain, c.ClusterDomain},
	} {
		if pair.want != pair.have {
			return fmt.Errorf("the cluster in the backup has --%s %s, the settings here say %s: restore and start with --%[1]s %[2]s", pair.key, pair.want, pair.have)
		}
	}
	return nil
}

// leftAlone are entries that a data dir may have before there is a node: the lock's, and those of file systems.
func leftAlone(name string) bool {
	return name == "run" || name == "log" || name == "lost+found" || name == restoringDir
}

// clearForRestore makes sure that the data dir holds nothing. What a restore left that did not come to its end is removed.
func clearForRestore(dataDir string) error {
	entries, err := os.ReadDir(dataDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking into the data dir: %w", err)
	}
	interrupted := CheckRestored(dataDir) != nil
	var others []string
	for _, entry := range entries {
		if !leftAlone(entry.Name()) {
			others = append(others, entry.Name())
		}
	}
	if len(others) > 0 && !interrupted {
		return fmt.Errorf("%s is not empty, it has %s: a backup is restored into an empty data dir only; see \"gantry down --purge\" or --data-dir",
			dataDir, strings.Join(others[:min(len(others), 5)], ", "))
	}
	// All of it came from the restore that was interrupted: before it there was nothing. The mark goes last.
	for _, name := range append(others, restoringDir) {
		if err := os.RemoveAll(filepath.Join(dataDir, name)); err != nil {
			return fmt.Errorf("removing what an interrupted restore left: %w", err)
		}
	}
	return nil
}

// settleRestore moves everything to its place. A crash in between leaves restoringDir, and so a data dir that "up" refuses.
func settleRestore(dataDir, staging string) error {
	entries, err := os.ReadDir(staging)
	if err != nil {
		return fmt.Errorf("finishing the restore: %w", err)
	}
	for _, entry := range entries {
		if slices.Contains([]string{"run", "log"}, entry.Name()) {
			continue
		}
		if err := os.Rename(filepath.Join(staging, entry.Name()), filepath.Join(dataDir, entry.Name())); err != nil {
			return fmt.Errorf("finishing the restore: %w", err)
		}
	}
	if err := durable.SyncDir(dataDir); err != nil {
		return err
	}
	if err := os.RemoveAll(staging); err != nil {
		return fmt.Errorf("finishing the restore: %w", err)
	}
	return durable.SyncDir(dataDir)
}
